-- What `stream-server serve` asks. Each block begins with its name; {airflow} is the schema of Airflow's tables, quoted.

-- journal_now --
-- Where the journal stands: for the cursor of a reader that wants only what comes from now on, and the youngest
-- transaction of which rows were deleted.
SELECT epoch, pg_current_snapshot()::text AS snapshot,
       greatest(pruned_to::text::bigint, (SELECT txid::text::bigint FROM stream_server.journal
                                          ORDER BY txid DESC LIMIT 1)) AS newest,
       pruned_to::text::bigint AS pruned_to
FROM stream_server.meta

-- journal_after --
-- All rows that a snapshot ($1) had not seen, in the order of their identity, and the snapshot that has seen them;
-- how often the triggers could not write something down, and the time.
-- One row with an empty id where there is nothing new. Both arms of the OR use the index on txid. Nothing that can be
-- seen lies above the upper bound; without it, a plan for unknown values would expect a third of the journal and scan it.
SELECT pg_current_snapshot()::text AS snapshot, l.last_value + l.is_called::integer AS losses,
       clock_timestamp() AS read_at, j.*
FROM stream_server.losses AS l
LEFT JOIN LATERAL (
    SELECT id, txid::text::bigint, at, kind, dag_id, run_id, task_id, map_index, try_number, state, previous_state,
           clear_number, queued_at, start_date, end_date, xcom_key, dag_result
    FROM stream_server.journal
    WHERE (txid >= pg_snapshot_xmax($1::text::pg_snapshot) AND txid < pg_snapshot_xmax(pg_current_snapshot()))
       OR txid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
) AS j ON true
ORDER BY j.id

-- run_snapshot --
-- A run ($1 DAG, $2 run), its task instances and which of them have pushed a return value in their current try, as one
-- snapshot sees them. One row for each task instance, and one row with an empty task_id where there is none.
-- A cleared task's old XCom stays until its next try has begun, hence the comparison of times. Only Airflow 3.3 has
-- xcom.dag_result: a bare name is looked for in the inner FROM first, then in the outer one, where it is empty. PostgreSQL
-- looks anew when the table changes, so that an upgrade or downgrade under us needs nothing.
SELECT m.epoch, pg_current_snapshot()::text AS snapshot,
       greatest(m.pruned_to::text::bigint, (SELECT txid::text::bigint FROM stream_server.journal
                                            ORDER BY txid DESC LIMIT 1)) AS newest,
       r.state AS run_state, r.queued_at AS run_queued_at, r.start_date AS run_start_date,
       r.end_date AS run_end_date, r.clear_number,
       t.task_id, t.map_index, t.try_number, t.state, t.start_date, t.end_date, t.dag_version_id,
       coalesce(t.state = 'success' OR (t.state = 'running' AND x.timestamp >= t.start_date), false)
           AND x.task_id IS NOT NULL AS pushed,
       x.dag_result
FROM stream_server.meta AS m
CROSS JOIN (SELECT NULL::boolean AS dag_result) AS without
CROSS JOIN {airflow}.dag_run AS r
LEFT JOIN {airflow}.task_instance AS t ON t.dag_id = r.dag_id AND t.run_id = r.run_id
LEFT JOIN LATERAL (
    SELECT y.task_id, y.timestamp, dag_result
    FROM {airflow}.xcom AS y
    WHERE y.dag_run_id = r.id AND y.task_id = t.task_id AND y.map_index = t.map_index AND y.key = 'return_value'
) AS x ON true
WHERE r.dag_id = $1 AND r.run_id = $2
ORDER BY t.task_id, t.map_index

-- serialized_dag --
-- The structure of a version ($1) of a DAG.
SELECT data::text AS data, data_compressed FROM {airflow}.serialized_dag WHERE dag_version_id = $1

-- return_values --
-- What tasks ($3) of a run ($1 DAG, $2 run) returned. The text is left out where the values of the task are larger
-- than $4 bytes together, so that they never leave the database.
SELECT x.task_id, x.map_index, v.bytes,
       CASE WHEN sum(v.bytes) OVER (PARTITION BY x.task_id) <= $4 THEN v.text END AS json
FROM {airflow}.dag_run AS r
JOIN {airflow}.xcom AS x ON x.dag_run_id = r.id
CROSS JOIN LATERAL (SELECT x.value::text AS text) AS s
CROSS JOIN LATERAL (SELECT s.text, octet_length(s.text) AS bytes) AS v
WHERE r.dag_id = $1 AND r.run_id = $2 AND x.task_id = ANY ($3::text[]) AND x.key = 'return_value'

-- put_back --
-- Put back the triggers that are missing; how many were.
SELECT stream_server.put_back(also_disabled => false)

-- prune --
-- Delete rows older than $1 seconds, $2 at most; how many were deleted.
SELECT stream_server.prune(make_interval(secs => $1), $2)
