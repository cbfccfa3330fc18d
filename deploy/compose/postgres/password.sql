-- Gives the role of reader.sql its password: the one in the connection string that avapd is given.
\set password `cat /run/secrets/reader-password`
ALTER ROLE avapd_reader PASSWORD :'password';
