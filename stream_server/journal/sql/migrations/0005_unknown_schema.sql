-- Whether the triggers met tables of Airflow that they can't read. The columns for task loops are added by finish.sql.

CREATE SEQUENCE stream_server.unknown_schema;
COMMENT ON SEQUENCE stream_server.unknown_schema IS 'Has a last value once a trigger lacked a column or table of Airflow: then the triggers do nothing. A sequence, because it keeps its value when a transaction is rolled back, and its readers do not wait for each other.';
