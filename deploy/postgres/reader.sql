-- The role that avapd reads its two tables with: it may connect and SELECT, nothing else. Run it as the owner of the
-- tables (who also may create roles), in the database that holds them; running it again changes nothing.
--
--     psql -X -v ON_ERROR_STOP=1 [-v role=avapd_reader] [-v schema=public] -f reader.sql 'postgresql://owner@host/database'
--
-- It sets no password, since a command line is public. Set one afterwards in psql with: \password avapd_reader
\if :{?role}
\else
    \set role avapd_reader
\endif
\if :{?schema}
\else
    \set schema public
\endif

BEGIN;

SELECT format('CREATE ROLE %I LOGIN', :'role')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'role') \gexec

-- A second lock on the door: the grants below are what holds, since a role may set this back for itself.
ALTER ROLE :"role" SET default_transaction_read_only = on;

SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec
GRANT USAGE ON SCHEMA :"schema" TO :"role";

-- Exactly SELECT: what was granted to the role on these tables before is taken back. avap_bytecode is optional.
SELECT format(command, relation, :'role')
FROM (
    VALUES
        (1, format('%I.%I', :'schema', 'obex_dapl_functions')),
        (2, to_regclass(format('%I.%I', :'schema', 'avap_bytecode'))::text)
) AS tables (position, relation),
    (VALUES (1, 'REVOKE ALL ON %s FROM %I'), (2, 'GRANT SELECT ON %s TO %I')) AS commands (step, command)
WHERE relation IS NOT NULL
ORDER BY position, step \gexec

COMMIT;
