-- What `stream-server serve` asks. Each block begins with its name; {airflow} is the schema of Airflow's tables, quoted.

-- journal_now --
-- Where the journal stands: for the cursor of a reader that wants only what comes from now on, and how often the triggers
-- could not write something down.
SELECT m.epoch, pg_current_snapshot()::text AS snapshot, m.pruned_to::text::bigint AS pruned_to,
       n.txid::text::bigint AS newest, n.id AS newest_id, n.at AS newest_at,
       l.last_value + l.is_called::integer AS losses
FROM stream_server.meta AS m
CROSS JOIN stream_server.losses AS l
LEFT JOIN LATERAL (SELECT id, txid, at FROM stream_server.journal ORDER BY txid DESC LIMIT 1) AS n ON true

-- newest --
-- The $1 rows of the journal whose transactions are the youngest.
SELECT id AS seq, txid::text::bigint, at FROM stream_server.journal ORDER BY stream_server.journal.txid DESC LIMIT $1

-- lacks --
-- Whether one of these rows ($1 identities, $2 transactions, $3 times) is not there any more, though none of its
-- transaction's was deleted as too old.
SELECT EXISTS (
    SELECT FROM unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) AS told (id, txid, at)
    CROSS JOIN stream_server.meta AS m
    WHERE told.txid > coalesce(m.pruned_to::text::bigint, 0)
      AND NOT EXISTS (SELECT FROM stream_server.journal AS j
                      WHERE j.txid = told.txid::text::xid8 AND j.id = told.id AND j.at = told.at)
)

-- in_progress --
-- A snapshot that also names the transactions in progress on the primary, where a read replica's own leave them out.
-- $1 is an earlier one, or empty: nothing that had ended by then need be looked at again. What is read with a later
-- snapshot may hold more, and never less, than this one has seen.
SELECT format('%s:%s:%s', s.xmin, s.xmax, (
    SELECT string_agg(c.txid::text, ',' ORDER BY c.txid)
    FROM (SELECT pg_snapshot_xip(b.before)::text::bigint
          UNION ALL
          SELECT generate_series(greatest(s.xmin, pg_snapshot_xmax(b.before)::text::bigint), s.xmax - 1)) AS c (txid)
    WHERE c.txid >= s.xmin AND pg_xact_status(c.txid::text::xid8) = 'in progress'
))
FROM (SELECT coalesce($1, '1:1:')::pg_snapshot AS before) AS b
CROSS JOIN (SELECT pg_snapshot_xmin(now)::text::bigint AS xmin, pg_snapshot_xmax(now)::text::bigint AS xmax
            FROM pg_current_snapshot() AS now) AS s

-- written_after --
-- The transactions that a snapshot ($1) had not seen and that have written to the journal.
SELECT DISTINCT txid::text::bigint
FROM stream_server.journal
WHERE txid >= pg_snapshot_xmax($1::text::pg_snapshot) OR txid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))

-- is_replica --
-- Whether this is a read replica.
SELECT pg_is_in_recovery()

-- journal_after --
-- All rows that a snapshot ($1) had not seen, in the order of their identity, and the snapshot that has seen them;
-- how often the triggers could not write something down, the time, and the youngest transaction of which rows were
-- deleted.
-- One row with an empty id where there is nothing new. Both arms of the OR use the index on txid. Nothing that can be
-- seen lies above the upper bound; without it, a plan for unknown values would expect a third of the journal and scan it.
SELECT pg_current_snapshot()::text AS snapshot, l.last_value + l.is_called::integer AS losses,
       clock_timestamp() AS read_at, m.pruned_to::text::bigint AS pruned_to, j.*
FROM stream_server.losses AS l
CROSS JOIN stream_server.meta AS m
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
SELECT m.epoch, pg_current_snapshot()::text AS snapshot, m.pruned_to::text::bigint AS pruned_to,
       n.txid::text::bigint AS newest, n.id AS newest_id, n.at AS newest_at, m.version,
       r.state AS run_state, r.queued_at AS run_queued_at, r.start_date AS run_start_date,
       r.end_date AS run_end_date, r.clear_number,
       t.task_id, t.map_index, t.try_number, t.state, t.start_date, t.end_date, t.dag_version_id,
       coalesce(t.state = 'success' OR (t.state = 'running' AND x.timestamp >= t.start_date), false)
           AND x.task_id IS NOT NULL AS pushed,
       x.dag_result
FROM stream_server.meta AS m
LEFT JOIN LATERAL (SELECT id, txid, at FROM stream_server.journal ORDER BY txid DESC LIMIT 1) AS n ON true
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

-- history --
-- The rows of a run ($1 DAG, $2 run), or of all where they are empty, that a snapshot ($3) had not seen, in the order of their identity; $4 at most. One row
-- with an empty id where there is none. As in journal_after, both arms use the index: those rows of all runs are looked at.
SELECT m.pruned_to::text::bigint AS pruned_to, m.version, j.*
FROM stream_server.meta AS m
LEFT JOIN LATERAL (
    SELECT id, txid::text::bigint, at, kind, dag_id, run_id, task_id, map_index, try_number, state, previous_state,
           clear_number, queued_at, start_date, end_date, xcom_key, dag_result
    FROM stream_server.journal
    WHERE ((txid >= pg_snapshot_xmax($3::text::pg_snapshot) AND txid < pg_snapshot_xmax(pg_current_snapshot()))
           OR txid = ANY (ARRAY(SELECT pg_snapshot_xip($3::text::pg_snapshot))))
        AND ($1::text IS NULL OR (dag_id = $1 AND run_id = $2))
    LIMIT $4
) AS j ON true
ORDER BY j.id

-- bodies --
-- What was said in rows ($1) of the journal, unless it has more than $2 bytes together; and how many it has.
SELECT id, octet_length(body) AS bytes,
       CASE WHEN $2::integer IS NULL OR sum(octet_length(body)) OVER () <= $2 THEN body END AS body
FROM stream_server.output WHERE id = ANY ($1::bigint[])

-- output --
-- What the tasks of a run ($1 DAG, $2 run) have said last, in the order in which they did: $3 rows and $4 bytes at most.
-- Without those whose try was given up, for a retry or when it was cleared: Airflow copies it to its history then. Only
-- the next try has another number, and a task that is marked as a success meanwhile has none.
WITH said AS (
    SELECT o.*
    FROM (
        SELECT id, txid::text::bigint, at, task_id, map_index, body,
               sum(octet_length(body)) OVER (ORDER BY id DESC) AS bytes
        FROM stream_server.output WHERE dag_id = $1 AND run_id = $2
        ORDER BY id DESC LIMIT $3
    ) AS o
    WHERE o.bytes <= $4
), given_up AS (
    SELECT s.task_id, s.map_index
    FROM (SELECT DISTINCT task_id, map_index FROM said) AS s
    CROSS JOIN LATERAL (
        SELECT FROM {airflow}.task_instance AS t
        JOIN {airflow}.task_instance_history AS h USING (dag_id, run_id, task_id, map_index, try_number)
        WHERE t.dag_id = $1 AND t.run_id = $2 AND t.task_id = s.task_id AND t.map_index = s.map_index
        LIMIT 1
    ) AS archived
)
SELECT o.id, o.txid, o.at, 'xcom' AS kind, $1::text AS dag_id, $2::text AS run_id, o.task_id, o.map_index, o.body
FROM said AS o
WHERE NOT EXISTS (SELECT FROM given_up AS g WHERE g.task_id = o.task_id AND g.map_index = o.map_index)
ORDER BY o.id

-- had_spoken --
-- Of rows ($3 identities, $4 tasks, $5 map indexes) of the journal of a run ($1 DAG, $2 run), those before which the task
-- instance had said something.
SELECT r.id FROM unnest($3::bigint[], $4::text[], $5::integer[]) AS r (id, task_id, map_index)
WHERE EXISTS (SELECT FROM stream_server.output AS o
              WHERE o.dag_id = $1 AND o.run_id = $2 AND o.task_id = r.task_id AND o.map_index = r.map_index
                AND o.id < r.id)

-- serialized_dag --
-- The structure of a version ($1) of a DAG.
SELECT data::text AS data, data_compressed FROM {airflow}.serialized_dag WHERE dag_version_id = $1

-- ended_runs --
-- Of the last $4 runs of a DAG ($1) that have ended, without one ($2), those of a version ($3), the newest first. The limit
-- comes first: otherwise the whole history of the DAG is read if the version is new.
SELECT r.id
FROM (SELECT id, created_dag_version_id FROM {airflow}.dag_run
      WHERE dag_id = $1 AND run_id <> $2 AND state IN ('success', 'failed') ORDER BY id DESC LIMIT $4) AS r
WHERE r.created_dag_version_id = $3
ORDER BY r.id DESC

-- shown_marks --
-- Which of some tasks ($4) of a DAG ($1) bear Airflow 3.3's own mark, as shown by some runs ($3) of a version ($2): by the newest
-- return value, whose mark is empty if an older Airflow wrote it; if there is none, a success shows no mark. Other tasks are
-- left out. The column of the mark is found as in run_snapshot. Each LIMIT keeps the planner from reading all task instances of
-- the version.
SELECT DISTINCT ON (n.task_id) n.task_id, x.has_value IS TRUE AS has_value,
       CASE WHEN x.has_value THEN x.dag_result ELSE false END AS marked
FROM unnest($4::text[]) AS n (task_id)
CROSS JOIN (SELECT id, run_id FROM {airflow}.dag_run WHERE id = ANY ($3::integer[])) AS r
CROSS JOIN (SELECT NULL::boolean AS dag_result) AS without
LEFT JOIN LATERAL (
    SELECT true AS has_value, dag_result
    FROM {airflow}.xcom AS y
    WHERE y.dag_run_id = r.id AND y.task_id = n.task_id AND y.key = 'return_value'
    LIMIT 1
) AS x ON true
CROSS JOIN LATERAL (
    SELECT FROM {airflow}.task_instance AS t
    WHERE t.dag_id = $1 AND t.run_id = r.run_id AND t.task_id = n.task_id AND t.dag_version_id = $2
        AND (x.has_value OR t.state = 'success')
    LIMIT 1
) AS shown
ORDER BY n.task_id, x.has_value, r.id DESC

-- tagged --
-- DAGs that bear one of some tags ($1).
SELECT DISTINCT dag_id FROM {airflow}.dag_tag WHERE name = ANY ($1::text[])

-- recent_runs --
-- The $2 youngest runs of a DAG ($1), or of all where it is empty, older than one ($3), and where the journal stands. One
-- row with an empty id where there is none.
SELECT m.epoch, pg_current_snapshot()::text AS snapshot, m.pruned_to::text::bigint AS pruned_to,
       n.txid::text::bigint AS newest, n.id AS newest_id, n.at AS newest_at, r.*
FROM stream_server.meta AS m
LEFT JOIN LATERAL (SELECT id, txid, at FROM stream_server.journal ORDER BY txid DESC LIMIT 1) AS n ON true
LEFT JOIN LATERAL (
    SELECT id, dag_id, run_id, state, run_type, queued_at, start_date, end_date
    FROM {airflow}.dag_run
    WHERE ($1::text IS NULL OR dag_id = $1) AND ($3::integer IS NULL OR id < $3)
    ORDER BY id DESC
    LIMIT $2
) AS r ON true
ORDER BY r.id DESC

-- dags_to_choose --
-- The DAGs that bear a tag ($1) and that Airflow still has.
SELECT d.dag_id, d.description, d.is_paused
FROM {airflow}.dag_tag AS t
JOIN {airflow}.dag AS d ON d.dag_id = t.dag_id
WHERE t.name = $1 AND NOT d.is_stale
ORDER BY d.dag_id

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

-- final_values --
-- What Airflow's own endpoint returns at the end of a run ($1 DAG, $2 run): what tasks ($3) returned or, where none are
-- named, those that Airflow has marked as its result. The text is left out as in return_values ($4), the column of the
-- mark is found as in run_snapshot.
SELECT x.task_id, x.map_index, v.bytes,
       CASE WHEN sum(v.bytes) OVER (PARTITION BY x.task_id) <= $4 THEN v.text END AS json
FROM (SELECT NULL::boolean AS dag_result) AS without
CROSS JOIN {airflow}.dag_run AS r
CROSS JOIN LATERAL (
    SELECT y.task_id, y.map_index, coalesce(y.value::text, 'null') AS text, dag_result AS marked
    FROM {airflow}.xcom AS y
    WHERE y.dag_run_id = r.id AND y.key = 'return_value'
) AS x
CROSS JOIN LATERAL (SELECT x.text, octet_length(x.text) AS bytes) AS v
WHERE r.dag_id = $1 AND r.run_id = $2 AND CASE WHEN $3::text[] IS NULL THEN x.marked ELSE x.task_id = ANY ($3) END

-- claim --
-- Claim a run ($3) for a key ($1) and a request ($2), for $4 seconds.
SELECT claimed_run, claimed_for, first FROM stream_server.claim($1, $2, $3, make_interval(secs => $4))

-- release --
-- Give the claim of a run ($2) for a key ($1) back.
SELECT stream_server.release($1, $2)

-- wait --
-- Note that a server ($3) has clients who watch some runs ($1 DAGs, $2 runs), for $4 seconds; where wished ($5), only beside
-- others. The runs for which it was noted. A read replica notes nothing.
SELECT w.waited_dag, w.waited_run
FROM (SELECT WHERE NOT pg_is_in_recovery()) AS writable,
     LATERAL stream_server.wait($1::text[], $2::text[], $3, make_interval(secs => $4), $5) AS w

-- wait_no_more --
-- Take that back, and tell for which of the runs another server has noted it, too.
SELECT w.waited_dag, w.waited_run
FROM (SELECT WHERE NOT pg_is_in_recovery()) AS writable,
     LATERAL stream_server.wait_no_more($1::text[], $2::text[], $3) AS w

-- keep_ticket --
-- Keep a ticket ($1) of a holder ($2) for paths ($3), with a sealed credential ($4), for $5 seconds, unless he has $6.
SELECT stream_server.keep_ticket($1, $2, $3, $4, make_interval(secs => $5), $6)

-- redeem_ticket --
-- Take a ticket ($1) away: the paths it is for, its sealed credential, and whether it was still good.
SELECT for_paths, sealed, good FROM stream_server.redeem_ticket($1)

-- put_back --
-- Put back the triggers that are missing; how many were. A read replica leaves that to the primary.
SELECT CASE WHEN pg_is_in_recovery() THEN 0 ELSE stream_server.put_back(also_disabled => false) END

-- prune --
-- Delete rows older than $1 seconds, and those beyond $3 bytes, $2 at most, of those that a snapshot ($4) has seen; from
-- where the last one has ended, if so wished ($5). How many were deleted. A read replica leaves that to the primary.
SELECT CASE WHEN pg_is_in_recovery() THEN 0
            ELSE stream_server.prune(make_interval(secs => $1), $2, $3, $4::text::pg_snapshot, $5) END

-- snapshot --
-- What can be seen just now.
SELECT pg_current_snapshot()::text

-- measures --
-- How large the journal is, with what tasks have said, how much of it is waiting for vacuum, how often the triggers could
-- not write something down, and how full PostgreSQL's queue of notifications is, which all databases share.
SELECT coalesce(s.n_live_tup, 0) AS live_rows, coalesce(s.n_dead_tup, 0) AS dead_rows,
       pg_table_size(c.oid) + coalesce(pg_table_size(o.oid), 0) AS table_bytes,
       pg_indexes_size(c.oid) + coalesce(pg_indexes_size(o.oid), 0) AS index_bytes,
       l.last_value + l.is_called::integer AS losses, pg_notification_queue_usage() AS queue_usage
FROM stream_server.losses AS l, pg_class AS c
LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid
LEFT JOIN pg_class AS o ON o.relnamespace = c.relnamespace AND o.relname = 'output'
WHERE c.oid = 'stream_server.journal'::regclass
