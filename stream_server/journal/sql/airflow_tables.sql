-- Which tables of Airflow exist, and with which columns.

-- columns --
-- The columns of tables ($2) of a schema ($1).
SELECT c.relname AS table_name, a.attname AS column_name
FROM pg_namespace AS n
JOIN pg_class AS c ON c.relnamespace = n.oid
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = $1 AND c.relname = ANY ($2::text[])

-- may_read_revision --
-- Whether this role may read the revision of a schema ($1), in alembic_version.
SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid
WHERE n.nspname = $1 AND c.relname = 'alembic_version'

-- revision --
-- The revision of the schema.
SELECT version_num FROM {airflow}.alembic_version LIMIT 1
