-- Removes everything that install has made, also where half of it is gone already.

SELECT pg_advisory_xact_lock(hashtext('stream_server install'));

DO $body$
DECLARE
    ours record;
BEGIN
    FOR ours IN
        SELECT t.tgname, t.tgrelid::regclass AS table_name
        FROM pg_trigger t
        JOIN pg_proc p ON p.oid = t.tgfoid
        JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = 'stream_server'
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', ours.tgname, ours.table_name);
    END LOOP;
END
$body$;

DROP SCHEMA IF EXISTS stream_server CASCADE;
