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
