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
