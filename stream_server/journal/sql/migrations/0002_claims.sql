-- Runs that requests with an Idempotency-Key have claimed.

CREATE TABLE stream_server.claims (
    key bytea PRIMARY KEY,
    request bytea NOT NULL,
    run_id text NOT NULL,
    expires timestamptz NOT NULL
);
COMMENT ON TABLE stream_server.claims IS 'Which run a request with an Idempotency-Key triggers. Digests, no values.';
CREATE INDEX claims_expires ON stream_server.claims (expires);
