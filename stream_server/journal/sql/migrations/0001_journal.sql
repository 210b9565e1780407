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
