-- Which cluster the transaction ids of the journal belong to. Airflow's transactions do not use this table.

ALTER TABLE stream_server.meta ADD COLUMN system_identifier bigint, ADD COLUMN journal_oid oid;
COMMENT ON COLUMN stream_server.meta.system_identifier IS 'The cluster of the epoch; NULL if PostgreSQL does not tell it.';
COMMENT ON COLUMN stream_server.meta.journal_oid IS 'The table of the epoch. A restored table has another oid.';
