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
