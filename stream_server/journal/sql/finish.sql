-- The end of the install script.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA stream_server FROM PUBLIC;

-- The journal may be that of a restored dump.
SELECT stream_server.adopt();

SELECT stream_server.put_back(also_disabled => true);

-- Triggers that were disabled stay disabled.
SELECT stream_server.switch_off() FROM stream_server.meta WHERE NOT enabled;

-- Without a replica identity, a publication FOR ALL TABLES makes each DELETE fail, and the journal grows. Below
-- logical replication it costs nothing. A trigger of Airflow's that waits for this lock gives up after 100 ms.
DO $body$
DECLARE
    lock_timeout text := current_setting('lock_timeout');
BEGIN
    IF (SELECT relreplident <> 'f' FROM pg_class WHERE oid = 'stream_server.journal'::regclass) THEN
        PERFORM set_config('lock_timeout', '80ms', true);
        ALTER TABLE stream_server.journal REPLICA IDENTITY FULL;
        PERFORM set_config('lock_timeout', lock_timeout, true);
    END IF;
END
$body$;
