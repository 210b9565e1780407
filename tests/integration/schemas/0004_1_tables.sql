-- What version 4 of the journal installed. Never changed: upgrades start from what databases have.

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
    IF installed > 4 THEN
        RAISE EXCEPTION 'The journal has version %, made by a newer stream-server; this one makes version 4',
            installed;
    END IF;
    IF coalesce(installed, 0) = 0 THEN
        -- An incomplete journal is replaced by a new one. Readers detect the new one by its epoch.
        FOR leftover IN
            SELECT format('%s %s', CASE relkind WHEN 'r' THEN 'TABLE' ELSE 'SEQUENCE' END, c.oid::regclass)
            FROM pg_class c
            WHERE relnamespace = 'stream_server'::regnamespace AND (relkind = 'r' OR relname = 'losses')
        LOOP
            EXECUTE format('DROP %s', leftover);
        END LOOP;
    END IF;
    PERFORM set_config('stream_server.installed_version', coalesce(installed, 0)::text, true);
END
$begin$;

DO $step$
BEGIN
IF current_setting('stream_server.installed_version')::integer < 1 THEN EXECUTE $migration$
-- The journal and its metadata.

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
-- The only index: the only query on the journal is for the rows that a snapshot does not cover.
CREATE INDEX journal_txid ON stream_server.journal (txid);

-- Counts the writes that the triggers dropped. A sequence, because it keeps its value when a transaction is rolled
-- back.
CREATE SEQUENCE stream_server.losses MINVALUE 0 START 0;
$migration$; END IF;
END
$step$;

DO $step$
BEGIN
IF current_setting('stream_server.installed_version')::integer < 2 THEN EXECUTE $migration$
-- Idempotency keys, and autovacuum settings for the journal.

-- The journal is a queue: rows are inserted at one end and deleted at the other. Vacuum starts early, so that the space
-- of deleted rows is reused soon. It does not truncate the file: for that it would lock out Airflow's transactions.
ALTER TABLE stream_server.journal
    SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000, vacuum_truncate = off);

-- Its replacement in services.sql has more parameters.
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

DO $step$
BEGIN
IF current_setting('stream_server.installed_version')::integer < 3 THEN EXECUTE $migration$
-- Output of running tasks, tickets of browsers, and servers with interested clients. Output has a table of its own: to
-- add a column to the journal would lock out Airflow's transactions.

CREATE TABLE stream_server.output (
    id bigint PRIMARY KEY,
    txid xid8 NOT NULL,
    at timestamptz NOT NULL,
    map_index integer NOT NULL,
    dag_id text NOT NULL,
    run_id text NOT NULL,
    task_id text NOT NULL,
    body text
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000, vacuum_truncate = off,
        toast.autovacuum_vacuum_scale_factor = 0.05, toast.vacuum_truncate = off);
COMMENT ON TABLE stream_server.output IS 'Output that running tasks emitted. Each row belongs to the journal row with the same id.';
COMMENT ON COLUMN stream_server.output.body IS 'The XCom value that the task pushed; NULL if it was too large.';
CREATE INDEX output_run ON stream_server.output (dag_id, run_id, id);

CREATE TABLE stream_server.tickets (
    digest bytea PRIMARY KEY,
    holder bytea NOT NULL,
    paths text[] NOT NULL,
    credential bytea NOT NULL,
    expires timestamptz NOT NULL
);
COMMENT ON TABLE stream_server.tickets IS 'One-time tickets with which browsers open streams: digests, and credentials that only the ticket decrypts.';
CREATE INDEX tickets_expires ON stream_server.tickets (expires);
CREATE INDEX tickets_holder ON stream_server.tickets (holder);

CREATE TABLE stream_server.waiters (
    dag_id text NOT NULL,
    run_id text NOT NULL,
    server uuid NOT NULL,
    expires timestamptz NOT NULL,
    PRIMARY KEY (dag_id, run_id, server)
);
COMMENT ON TABLE stream_server.waiters IS 'Servers with clients that watch a run which is cancelled when the last client disconnects.';
CREATE INDEX waiters_expires ON stream_server.waiters (expires);
$migration$; END IF;
END
$step$;

DO $step$
BEGIN
IF current_setting('stream_server.installed_version')::integer < 4 THEN EXECUTE $migration$
-- Which cluster the transaction ids of the journal belong to. Airflow's transactions do not use this table.

ALTER TABLE stream_server.meta ADD COLUMN system_identifier bigint, ADD COLUMN journal_oid oid;
COMMENT ON COLUMN stream_server.meta.system_identifier IS 'The cluster of the epoch; NULL if PostgreSQL does not tell it.';
COMMENT ON COLUMN stream_server.meta.journal_oid IS 'The table of the epoch. A restored table has another oid.';
$migration$; END IF;
END
$step$;

