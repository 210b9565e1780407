-- The queries of `stream-server doctor`. Each runs in a read-only transaction. Each block starts with its name.

-- server --
-- This role, this connection, and the server.
SELECT current_user AS role, current_database() AS database, pg_backend_pid() AS pid,
       host(inet_server_addr()) AS host, inet_server_port() AS port,
       current_setting('server_version') AS version, current_setting('server_version_num')::integer AS version_number,
       pg_is_in_recovery() AS in_recovery,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
       (SELECT s.version FROM pg_stat_ssl AS s WHERE s.pid = pg_backend_pid() AND s.ssl) AS tls,
       coalesce(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1', true) AS local,
       current_setting('max_prepared_transactions')::integer AS max_prepared_transactions

-- clock --
-- PostgreSQL's clock.
SELECT clock_timestamp()

-- queue --
-- The used share of the notification queue, which all databases share.
SELECT pg_notification_queue_usage()

-- connections --
-- The number of our connections, of all connections, and the limits.
SELECT (SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'stream_server' AND datname = current_database()) AS ours,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
       current_setting('max_connections')::integer
           - current_setting('superuser_reserved_connections')::integer
           - coalesce(current_setting('reserved_connections', true)::integer, 0) AS most,
       (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user) AS role_limit,
       (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user) AS used_by_role

-- transactions --
-- What keeps vacuum from removing dead rows of this database: open transactions, prepared transactions, replication
-- slots. Of other roles' sessions PostgreSQL shows only the snapshots, unless this role has pg_read_all_stats.
SELECT 'session' AS kind, format('%s (%s, pid %s)', usename, coalesce(nullif(application_name, ''), '?'), pid) AS name,
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
-- Schemas with Airflow's tables, `public` first.
SELECT n.nspname FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid
WHERE c.relname IN ('task_instance', 'dag_run', 'serialized_dag') AND c.relkind IN ('r', 'p')
GROUP BY n.nspname HAVING count(*) = 3
ORDER BY n.nspname <> 'public', n.nspname

-- privileges --
-- Whether this role has privileges ($4) on objects: their kinds ($1), schemas ($2) and names ($3, empty for the schema
-- itself). NULL for an object that does not exist.
SELECT w.kind, w.schema, w.name, w.privilege,
       CASE w.kind
           WHEN 'schema' THEN has_schema_privilege(n.oid, w.privilege)
           WHEN 'function' THEN (SELECT bool_and(has_function_privilege(p.oid, w.privilege))
                                 FROM pg_proc AS p WHERE p.pronamespace = n.oid AND p.proname = w.name)
           WHEN 'sequence' THEN has_sequence_privilege(c.oid, w.privilege)
           ELSE has_table_privilege(c.oid, w.privilege)
       END AS granted
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS w (kind, schema, name, privilege, ordinal)
LEFT JOIN pg_namespace AS n ON n.nspname = w.schema
LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name
    AND c.relkind = ANY (CASE w.kind WHEN 'sequence' THEN '{S}' ELSE '{r,p}' END::"char"[])
ORDER BY w.ordinal

-- journal --
-- The size of the journal, the age of its oldest and newest rows, and its last vacuum.
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
-- The age of the newest change, in seconds, among the 200 DAG runs created last.
SELECT extract(epoch FROM clock_timestamp() - max(newest) FILTER (WHERE newest {is_python_time}))::float8
FROM (
    SELECT greatest(queued_at, start_date, end_date) AS newest FROM {airflow}.dag_run ORDER BY id DESC LIMIT 200
) AS r
