-- The journal of stream_server and its triggers on Airflow's tables.
--
-- Safe to run again: what stands already is left alone. Airflow's tables are locked (SHARE ROW EXCLUSIVE, for an instant)
-- only where a trigger is missing or differs.

SELECT pg_advisory_xact_lock(hashtext('stream_server install'));

CREATE SCHEMA IF NOT EXISTS stream_server;

-- What stands is not even looked at by a statement that would lock it: Airflow's triggers would wait behind that.
DO $begin$
DECLARE
    standing integer := 0;
    remnant text;
BEGIN
    IF to_regclass('stream_server.meta') IS NOT NULL AND to_regclass('stream_server.journal') IS NOT NULL
        AND to_regclass('stream_server.losses') IS NOT NULL
    THEN
        SELECT version INTO standing FROM stream_server.meta;
    END IF;
    IF standing > {version} THEN
        RAISE EXCEPTION 'The journal has version %, made by a newer stream-server; this one makes version {version}',
            standing;
    END IF;
    IF coalesce(standing, 0) = 0 THEN
        -- What is not whole is made anew; readers notice by the epoch.
        FOR remnant IN
            SELECT format('%s %s', CASE relkind WHEN 'r' THEN 'TABLE' ELSE 'SEQUENCE' END, c.oid::regclass)
            FROM pg_class c
            WHERE relnamespace = 'stream_server'::regnamespace AND (relkind = 'r' OR relname = 'losses')
        LOOP
            EXECUTE format('DROP %s', remnant);
        END LOOP;
    END IF;
    PERFORM set_config('stream_server.standing', coalesce(standing, 0)::text, true);
END
$begin$;
