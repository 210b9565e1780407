-- What running tasks say, the tickets of browsers, and who waits for runs. Tables of their own: a column more in the
-- journal would lock it, and Airflow's transactions out.

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
COMMENT ON TABLE stream_server.output IS 'What running tasks have said, beside the row of the journal with the same id.';
COMMENT ON COLUMN stream_server.output.body IS 'As the task has pushed it; empty where it was too large.';
CREATE INDEX output_run ON stream_server.output (dag_id, run_id, id);

CREATE TABLE stream_server.tickets (
    digest bytea PRIMARY KEY,
    holder bytea NOT NULL,
    paths text[] NOT NULL,
    credential bytea NOT NULL,
    expires timestamptz NOT NULL
);
COMMENT ON TABLE stream_server.tickets IS 'Tickets with which browsers may open streams, once. Digests, and credentials that only the ticket opens.';
CREATE INDEX tickets_expires ON stream_server.tickets (expires);
CREATE INDEX tickets_holder ON stream_server.tickets (holder);

CREATE TABLE stream_server.waiters (
    dag_id text NOT NULL,
    run_id text NOT NULL,
    server uuid NOT NULL,
    expires timestamptz NOT NULL,
    PRIMARY KEY (dag_id, run_id, server)
);
COMMENT ON TABLE stream_server.waiters IS 'Servers at which somebody waits for a run that shall be stopped when nobody does.';
CREATE INDEX waiters_expires ON stream_server.waiters (expires);
