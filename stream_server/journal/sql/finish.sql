-- The end of the install script.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA stream_server FROM PUBLIC;

-- Without these privileges each row that the triggers can't look up is a loss.
DO $body$
DECLARE
    lacking record;
BEGIN
    FOR lacking IN
        {owner_privileges}
    LOOP
        RAISE EXCEPTION 'The owner of the trigger functions, %, lacks SELECT on %. See Roles in docs/operations.md',
            lacking.owner, lacking.tables;
    END LOOP;
END
$body$;

-- The journal may be that of a restored dump.
SELECT stream_server.adopt();

SELECT stream_server.put_back(also_disabled => true);

-- Triggers that were disabled stay disabled.
SELECT stream_server.switch_off() FROM stream_server.meta WHERE NOT enabled;

-- A trigger of Airflow's that waits for a lock on a table of the journal gives up after 100 ms. So these statements are
-- the last ones, and wait for less.
--
-- The columns hold the iteration of a task loop of Airflow 3.4; they are NULL outside of loops.
--
-- Without a replica identity, a publication FOR ALL TABLES makes each DELETE fail, and the journal grows. Below
-- logical replication it costs nothing.
DO $body$
DECLARE
    lock_timeout text := current_setting('lock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', '80ms', true);
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'stream_server.output'::regclass AND attname = 'iteration')
    THEN
        ALTER TABLE stream_server.output ADD COLUMN iteration integer;
        ALTER TABLE stream_server.journal ADD COLUMN iteration integer;
    END IF;
    IF (SELECT relreplident <> 'f' FROM pg_class WHERE oid = 'stream_server.journal'::regclass) THEN
        ALTER TABLE stream_server.journal REPLICA IDENTITY FULL;
    END IF;
    PERFORM set_config('lock_timeout', lock_timeout, true);
END
$body$;
