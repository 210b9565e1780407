-- What `stream-server doctor` asks, each in a transaction that can only read. Each block begins with its name.

-- server --
-- Who we are, where, and on what.
SELECT current_user AS role, current_database() AS database, pg_backend_pid() AS pid,
       host(inet_server_addr()) AS host, inet_server_port() AS port,
       current_setting('server_version') AS version, current_setting('server_version_num')::integer AS version_number,
       pg_is_in_recovery() AS in_recovery,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
       (SELECT s.version FROM pg_stat_ssl AS s WHERE s.pid = pg_backend_pid() AND s.ssl) AS tls,
       coalesce(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1', true) AS local,
       current_setting('max_prepared_transactions')::integer AS max_prepared_transactions

-- clock --
-- The time, as PostgreSQL sees it.
SELECT clock_timestamp()

-- queue --
-- How full the queue of notifications is; it is one for all databases.
SELECT pg_notification_queue_usage()

-- connections --
-- How many connections are ours, how many there are in all, and how many there may be.
SELECT (SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'stream_server' AND datname = current_database()) AS ours,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
       current_setting('max_connections')::integer
           - current_setting('superuser_reserved_connections')::integer
           - coalesce(current_setting('reserved_connections', true)::integer, 0) AS most,
       (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user) AS role_limit,
       (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user) AS used_by_role

-- transactions --
-- What keeps vacuum from the dead rows of this database: open transactions, prepared ones, replication slots. Of other
-- roles' sessions PostgreSQL tells only their snapshots, unless this role has pg_read_all_stats.
SELECT 'session' AS kind, format('%s (%s, pid %s)', usename, coalesce(nullif(application_name, ''), '?'), pid) AS who,
       application_name = 'stream_server' AS ours, coalesce(state, '') LIKE 'idle in transaction%' AS idle,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds,
       extract(epoch FROM clock_timestamp() - state_change)::float8 AS in_state,
       greatest(age(backend_xmin), age(backend_xid)) AS held
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')
    AND coalesce(datname = current_database(), true)
    AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
UNION ALL
SELECT 'prepared transaction', gid, false, false, extract(epoch FROM clock_timestamp() - prepared)::float8, NULL,
       age(transaction)
FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'replication slot', slot_name, false, false, NULL, NULL, greatest(age(xmin), age(catalog_xmin))
FROM pg_replication_slots WHERE xmin IS NOT NULL
ORDER BY held DESC NULLS LAST

-- airflow_schemas --
-- Schemas that hold Airflow's tables, the usual one first.
SELECT n.nspname FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid
WHERE c.relname IN ('task_instance', 'dag_run', 'xcom', 'serialized_dag') AND c.relkind IN ('r', 'p')
GROUP BY n.nspname HAVING count(*) = 4
ORDER BY n.nspname <> 'public', n.nspname

-- columns --
-- The columns of tables ($2) of a schema ($1).
SELECT c.relname AS table_name, a.attname AS column_name
FROM pg_namespace AS n
JOIN pg_class AS c ON c.relnamespace = n.oid
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = $1 AND c.relname = ANY ($2::text[])

-- may_read_version --
-- Whether this role may read which version Airflow's migrations have reached, in a schema ($1).
SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid
WHERE n.nspname = $1 AND c.relname = 'alembic_version'

-- privileges --
-- Whether this role has privileges ($4) on objects: their kinds ($1), schemas ($2) and names ($3, empty for the schema
-- itself). Nothing for what does not exist.
SELECT w.kind, w.schema, w.name, w.privilege,
       CASE w.kind
           WHEN 'schema' THEN has_schema_privilege(n.oid, w.privilege)
           WHEN 'function' THEN (SELECT bool_and(has_function_privilege(p.oid, w.privilege))
                                 FROM pg_proc AS p WHERE p.pronamespace = n.oid AND p.proname = w.name)
           WHEN 'sequence' THEN has_sequence_privilege(c.oid, w.privilege)
           ELSE has_table_privilege(c.oid, w.privilege)
       END AS granted
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS w (kind, schema, name, privilege, place)
LEFT JOIN pg_namespace AS n ON n.nspname = w.schema
LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name
    AND c.relkind = ANY (CASE w.kind WHEN 'sequence' THEN '{S}' ELSE '{r,p}' END::"char"[])
ORDER BY w.place

-- journal --
-- How large the journal is, what its oldest and newest rows are, and how vacuum goes on.
SELECT pg_table_size(c.oid) AS table_bytes, pg_indexes_size(c.oid) AS index_bytes,
       coalesce(s.n_live_tup, 0) AS live_rows, coalesce(s.n_dead_tup, 0) AS dead_rows,
       greatest(s.last_autovacuum, s.last_vacuum) AS last_vacuum,
       (SELECT extract(epoch FROM clock_timestamp() - at)::float8
        FROM stream_server.journal ORDER BY txid LIMIT 1) AS oldest_age,
       (SELECT extract(epoch FROM clock_timestamp() - at)::float8
        FROM stream_server.journal ORDER BY txid DESC LIMIT 1) AS newest_age,
       extract(epoch FROM clock_timestamp() - m.installed_at)::float8 AS installed_age,
       m.pruned_to IS NOT NULL AS pruned
FROM stream_server.meta AS m, pg_class AS c LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid
WHERE c.oid = 'stream_server.journal'::regclass

-- newest_change --
-- Age of the newest change of a DAG run, among those created last, as Airflow has written it.
SELECT extract(epoch FROM clock_timestamp() - max(greatest(queued_at, start_date, end_date)))::float8
FROM (SELECT queued_at, start_date, end_date FROM {airflow}.dag_run ORDER BY id DESC LIMIT 200) AS r
