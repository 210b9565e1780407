-- The install script: the journal of stream_server, and its triggers on Airflow's tables.
--
-- It can run again at any time: existing objects are kept. It locks an Airflow table (SHARE ROW EXCLUSIVE, for an
-- instant) only if a trigger on it is missing or differs.

SELECT pg_advisory_xact_lock(hashtext('stream_server install'));

CREATE SCHEMA IF NOT EXISTS stream_server;

-- No statement below locks an existing table: Airflow's transactions, whose triggers write to the journal, would wait
-- for it.
DO $begin$
DECLARE
    installed integer := 0;
    leftover text;
BEGIN
    IF to_regclass('stream_server.meta') IS NOT NULL AND to_regclass('stream_server.journal') IS NOT NULL
        AND to_regclass('stream_server.losses') IS NOT NULL
    THEN
        SELECT version INTO installed FROM stream_server.meta;
    END IF;
    IF installed > {version} THEN
        RAISE EXCEPTION 'The journal has version %, made by a newer stream-server; this one makes version {version}',
            installed;
    END IF;
    IF coalesce(installed, 0) = 0 THEN
        -- An incomplete journal is replaced by a new one. Readers detect the new one by its epoch.
        FOR leftover IN
            SELECT format('%s %s', CASE relkind WHEN 'r' THEN 'TABLE' ELSE 'SEQUENCE' END, c.oid::regclass)
            FROM pg_class c
            WHERE relnamespace = 'stream_server'::regnamespace AND (relkind = 'r' OR relname IN ('losses', 'unknown_schema'))
        LOOP
            EXECUTE format('DROP %s', leftover);
        END LOOP;
    END IF;
    PERFORM set_config('stream_server.installed_version', coalesce(installed, 0)::text, true);
END
$begin$;
