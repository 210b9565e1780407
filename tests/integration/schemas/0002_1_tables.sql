-- What version 2 of the journal installed. Never changed: upgrades must begin from what stands in databases.

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
    IF standing > 2 THEN
        RAISE EXCEPTION 'The journal has version %, made by a newer stream-server; this one makes version 2',
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

DO $step$
BEGIN
IF current_setting('stream_server.standing')::integer < 1 THEN EXECUTE $migration$
-- The journal, and what is known of it.

CREATE TABLE stream_server.meta (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    epoch text NOT NULL DEFAULT left(replace(gen_random_uuid()::text, '-', ''), 12),
    version integer NOT NULL,
    oldest_server integer NOT NULL,
    airflow_schema name NOT NULL,
    enabled boolean NOT NULL DEFAULT true,
    pruned_to xid8,
    installed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE stream_server.meta IS 'What is installed. The epoch tells this journal from any other one.';
COMMENT ON COLUMN stream_server.meta.oldest_server IS 'Servers that need a version older than this one do not understand it.';
COMMENT ON COLUMN stream_server.meta.enabled IS 'Whether the triggers write; see stream_server.switch_off().';
COMMENT ON COLUMN stream_server.meta.pruned_to IS 'The youngest transaction of which rows were deleted.';

CREATE TABLE stream_server.journal (
    id bigint GENERATED ALWAYS AS IDENTITY,
    txid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    queued_at timestamptz,
    start_date timestamptz,
    end_date timestamptz,
    ti_id uuid,
    map_index integer,
    try_number integer,
    clear_number integer,
    dag_result boolean,
    kind text NOT NULL,
    dag_id text,
    run_id text,
    task_id text,
    state text,
    previous_state text,
    xcom_key text
);
COMMENT ON TABLE stream_server.journal IS 'Committed transitions of Airflow, written by triggers.';
-- The only index: readers ask for what their snapshot had not seen, and nothing else.
CREATE INDEX journal_txid ON stream_server.journal (txid);

-- Counts what the triggers could not write down. A sequence, since it keeps its value when a transaction is rolled back.
CREATE SEQUENCE stream_server.losses MINVALUE 0 START 0;
$migration$; END IF;
END
$step$;

DO $step$
BEGIN
IF current_setting('stream_server.standing')::integer < 2 THEN EXECUTE $migration$
-- Runs that requests with an Idempotency-Key have claimed, and a journal that keeps its size.

-- Rows come and go like in a queue. Vacuum comes early, so that the space of the deleted is soon used again, and does not
-- give space back: for that it would lock out Airflow's transactions.
ALTER TABLE stream_server.journal
    SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000, vacuum_truncate = off);

-- Its successor has more parameters.
DROP FUNCTION IF EXISTS stream_server.prune(interval, integer);

CREATE TABLE stream_server.claims (
    key bytea PRIMARY KEY,
    request bytea NOT NULL,
    run_id text NOT NULL,
    expires timestamptz NOT NULL
);
COMMENT ON TABLE stream_server.claims IS 'Which run a request with an Idempotency-Key triggers. Digests, no values.';
CREATE INDEX claims_expires ON stream_server.claims (expires);
$migration$; END IF;
END
$step$;

