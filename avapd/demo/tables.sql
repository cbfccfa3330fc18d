-- The source tables of the AVAP platform (contract part 2), and a role that may only read them.
CREATE TABLE obex_dapl_functions (
    id serial PRIMARY KEY,
    name varchar(100),
    interface text,
    description text,
    type varchar(50),
    logic boolean,
    componenttype varchar(50),
    service varchar(50),
    command varchar(50),
    code text
);

CREATE TABLE avap_bytecode (
    id serial PRIMARY KEY,
    command_name varchar(100) UNIQUE NOT NULL,
    bytecode bytea,
    version int DEFAULT 1,
    compiled_at timestamp,
    source_hash varchar(64),
    is_verified boolean
);

CREATE ROLE avapd_reader LOGIN;
GRANT SELECT ON obex_dapl_functions, avap_bytecode TO avapd_reader;
