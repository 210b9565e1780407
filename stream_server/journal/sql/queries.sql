-- The queries of `stream-server serve`, each after its name. {airflow} is the quoted schema of Airflow's tables. Parts
-- that depend on the columns of these tables are in reads_instances.sql and reads_tries.sql.
--
-- Positions. A position in the journal is a snapshot, `xmin:xmax:xip,...`. It covers the rows of the transactions that
-- are visible in it: those below xmax, except the ones listed in xip, which were in progress. The rows that come after
-- it are those with txid >= xmax OR txid = ANY (xip).
--
-- A position can't be a number. The order of `id` and of `txid` is the order in which transactions begin to write, not
-- the order in which they commit: a transaction with a lower id may commit after one with a higher id was read. A
-- reader that asks for `id > last` loses it. A snapshot lists it in xip, and the read after its commit finds it.
--
-- Times that Airflow's tables may have and Python can't hold, as infinity and year 15000, are read as NULL
-- ({is_python_time}): the driver would fail at the whole result.
--
-- NOT pg_visible_in_snapshot(txid, $1) has the same meaning, but can't use the index on txid. Both arms of the OR can.

-- journal_head --
-- The current end of the journal, for a reader that starts there, and the number of writes that the triggers dropped.
SELECT m.epoch, pg_current_snapshot()::text AS snapshot, m.pruned_to::text::bigint AS pruned_to,
       n.txid::text::bigint AS newest, n.id AS newest_id, n.at AS newest_at,
       l.last_value + l.is_called::integer AS dropped_writes
FROM stream_server.meta AS m
CROSS JOIN stream_server.losses AS l
LEFT JOIN LATERAL (SELECT id, txid, at FROM stream_server.journal ORDER BY txid DESC LIMIT 1) AS n ON true

-- newest_rows --
SELECT id AS seq, txid::text::bigint, at FROM stream_server.journal ORDER BY stream_server.journal.txid DESC LIMIT $1

-- is_any_row_missing --
-- Whether one of some rows ($1 ids, $2 transactions, $3 times) is missing, although no row of its transaction was
-- pruned. All three columns are compared: after a failover, ids and transaction ids are assigned again.
SELECT EXISTS (
    SELECT FROM unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) AS known (id, txid, at)
    CROSS JOIN stream_server.meta AS m
    WHERE known.txid > coalesce(m.pruned_to::text::bigint, 0)
      AND NOT EXISTS (SELECT FROM stream_server.journal AS j
                      WHERE j.txid = known.txid::text::xid8 AND j.id = known.id AND j.at = known.at)
)

-- replica_snapshot --
-- A snapshot that lists the transactions in progress on the primary. On a read replica, pg_current_snapshot() does not
-- list them. $1 is an earlier result, or NULL: transactions that had ended then are not checked again. A later query
-- sees at least what this snapshot covers, and maybe more.
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

-- transactions_after --
-- The transactions with rows in the journal that a snapshot ($1) does not cover.
SELECT DISTINCT txid::text::bigint
FROM stream_server.journal
WHERE txid >= pg_snapshot_xmax($1::text::pg_snapshot) OR txid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))

-- is_replica --
SELECT pg_is_in_recovery()

-- rows_after --
-- All rows that a snapshot ($1) does not cover, ordered by id; with each, the epoch, the snapshot of this read, the
-- number of dropped writes, the time, and the youngest transaction of which rows were pruned. One row with a NULL id if
-- there are none.
--
-- All transactions in xip are below xmax, so the arms of the OR don't overlap. The upper bound (txid < xmax of the
-- current snapshot) excludes no visible row. Without it, a generic plan assumes that a third matches, and scans it.
--
-- The journal has the column iteration from version 5. The unqualified name is resolved in the inner FROM first, and
-- else in the outer one (the NULL of "without"). PostgreSQL resolves it again when the table changes.
SELECT m.epoch, pg_current_snapshot()::text AS snapshot, l.last_value + l.is_called::integer AS dropped_writes,
       clock_timestamp() AS read_at, m.pruned_to::text::bigint AS pruned_to, j.*
FROM stream_server.losses AS l
CROSS JOIN stream_server.meta AS m
CROSS JOIN (SELECT NULL::integer AS iteration) AS without
LEFT JOIN LATERAL (
    SELECT id, txid::text::bigint, at, kind, dag_id, run_id, task_id, map_index, try_number, state, previous_state,
           clear_number, CASE WHEN queued_at {is_python_time} THEN queued_at END AS queued_at,
           CASE WHEN start_date {is_python_time} THEN start_date END AS start_date,
           CASE WHEN end_date {is_python_time} THEN end_date END AS end_date, xcom_key, dag_result, iteration, ti_id
    FROM stream_server.journal
    WHERE (txid >= pg_snapshot_xmax($1::text::pg_snapshot) AND txid < pg_snapshot_xmax(pg_current_snapshot()))
       OR txid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
) AS j ON true
ORDER BY j.id

-- run_snapshot --
-- A run ($1 DAG, $2 run), its task instances, which of them pushed a return value in their current try, and which asked
-- for human input, all in one snapshot. One row for each task instance, or one row with a NULL task_id if there are none.
--
-- The XCom of a cleared task remains until its next try is running, and is deleted a moment later. So an XCom of a
-- running task counts only if it is not older than the start of the try. A deferred task keeps its XComs, also while it
-- waits to run again. Then its next_method is set; that of a new try is not.
SELECT m.epoch, pg_current_snapshot()::text AS snapshot, m.pruned_to::text::bigint AS pruned_to,
       n.txid::text::bigint AS newest, n.id AS newest_id, n.at AS newest_at, m.version,
       r.state AS run_state, r.clear_number,
       CASE WHEN r.queued_at {is_python_time} THEN r.queued_at END AS run_queued_at,
       CASE WHEN r.start_date {is_python_time} THEN r.start_date END AS run_start_date,
       CASE WHEN r.end_date {is_python_time} THEN r.end_date END AS run_end_date,
       t.task_id, t.map_index, t.iteration, t.try_number, t.state, t.dag_version_id,
       CASE WHEN t.start_date {is_python_time} THEN t.start_date END AS start_date,
       CASE WHEN t.end_date {is_python_time} THEN t.end_date END AS end_date,
       coalesce(
           t.state = 'success' OR (x.timestamp >= t.start_date AND (
               t.state = 'running'
               OR (t.state IN ('deferred', 'awaiting_input', 'scheduled', 'queued') AND t.next_method IS NOT NULL)
           )), false
       ) AND x.has_value IS TRUE AS pushed,
       x.has_value IS TRUE AS has_value, x.dag_result, h.record AS request
FROM stream_server.meta AS m
LEFT JOIN LATERAL (SELECT id, txid, at FROM stream_server.journal ORDER BY txid DESC LIMIT 1) AS n ON true
CROSS JOIN (SELECT NULL::boolean AS dag_result) AS without
CROSS JOIN {airflow}.dag_run AS r
LEFT JOIN ({instances}) AS t ON t.dag_id = r.dag_id AND t.run_id = r.run_id
LEFT JOIN ({requests_of_run}) AS h ON h.ti_id = t.id
LEFT JOIN LATERAL ({instance_value}) AS x ON true
WHERE r.dag_id = $1 AND r.run_id = $2
ORDER BY t.task_id, t.map_index, t.iteration

-- history --
-- The rows of a run ($1 DAG, $2 run), or of all runs if both are NULL, that a snapshot ($3) of an epoch ($5) does not
-- cover, ordered by id, at most $4. One row with a NULL id if there are none. is_complete is false, and there are no
-- rows, if the journal has another epoch, if some rows were pruned, or if there are more than $6 of all runs: a client
-- chooses the snapshot, and the cost must not grow with the journal. The index is that on txid, as in rows_after: rows
-- of all runs are read. They are counted by UNION ALL, which stops at the LIMIT; OR would read the index to its end.
WITH history AS MATERIALIZED (
    SELECT m.version, CASE
        WHEN m.epoch = $5 AND (m.pruned_to IS NULL OR pg_visible_in_snapshot(m.pruned_to, $3::text::pg_snapshot)) THEN (
            SELECT count(*) <= $6 FROM (
                SELECT FROM stream_server.journal
                WHERE txid >= pg_snapshot_xmax($3::text::pg_snapshot) AND txid < pg_snapshot_xmax(pg_current_snapshot())
                UNION ALL
                SELECT FROM stream_server.journal
                WHERE txid = ANY (ARRAY(SELECT pg_snapshot_xip($3::text::pg_snapshot)))
                LIMIT $6 + 1
            ) AS counted)
        ELSE false END AS is_complete
    FROM stream_server.meta AS m
)
SELECT h.is_complete, h.version, j.*
FROM history AS h
CROSS JOIN (SELECT NULL::integer AS iteration) AS without
LEFT JOIN LATERAL (
    SELECT id, txid::text::bigint, at, kind, dag_id, run_id, task_id, map_index, try_number, state, previous_state,
           clear_number, CASE WHEN queued_at {is_python_time} THEN queued_at END AS queued_at,
           CASE WHEN start_date {is_python_time} THEN start_date END AS start_date,
           CASE WHEN end_date {is_python_time} THEN end_date END AS end_date, xcom_key, dag_result, iteration, ti_id
    FROM stream_server.journal
    WHERE h.is_complete
        AND ((txid >= pg_snapshot_xmax($3::text::pg_snapshot) AND txid < pg_snapshot_xmax(pg_current_snapshot()))
             OR txid = ANY (ARRAY(SELECT pg_snapshot_xip($3::text::pg_snapshot))))
        AND ($1::text IS NULL OR (dag_id = $1 AND run_id = $2) OR (kind = 'input' AND ti_id IN (
            SELECT id FROM {airflow}.task_instance WHERE dag_id = $1 AND run_id = $2)))
    LIMIT $4
) AS j ON true
ORDER BY j.id

-- output_bodies --
-- The output that belongs to rows ($1) of the journal, with its bytes. The bodies are NULL if they have more than $2
-- bytes together.
SELECT id, octet_length(body) AS bytes,
       CASE WHEN $2::integer IS NULL OR sum(octet_length(body)) OVER () <= $2 THEN body END AS body
FROM stream_server.output WHERE id = ANY ($1::bigint[])

-- run_output --
-- The latest output of the tasks of a run ($1 DAG, $2 run), oldest first: at most $3 rows and $4 bytes. It excludes
-- task instances whose current try was abandoned. iteration is resolved as in rows_after.
WITH latest AS (
    SELECT o.*
    FROM (SELECT NULL::integer AS iteration) AS without
    CROSS JOIN LATERAL (
        SELECT id, txid::text::bigint, at, task_id, map_index, iteration, body,
               sum(octet_length(body)) OVER (ORDER BY id DESC) AS bytes
        FROM stream_server.output WHERE dag_id = $1 AND run_id = $2
        ORDER BY id DESC LIMIT $3
    ) AS o
    WHERE o.bytes <= $4
), abandoned AS MATERIALIZED (
    SELECT s.*
    FROM (SELECT DISTINCT task_id, map_index, iteration FROM latest) AS s
    WHERE {is_abandoned}
)
SELECT o.id, o.txid, o.at, 'xcom' AS kind, $1::text AS dag_id, $2::text AS run_id, o.task_id, o.map_index, o.iteration,
       o.body
FROM latest AS o
WHERE NOT EXISTS (SELECT FROM abandoned AS a
                  WHERE a.task_id = o.task_id AND a.map_index = o.map_index
                    AND a.iteration IS NOT DISTINCT FROM o.iteration)
ORDER BY o.id

-- rows_after_output --
-- Of some journal rows ($3 ids, $4 tasks, $5 map indexes, $6 iterations) of a run ($1 DAG, $2 run), those with earlier
-- output of the same task instance. Before version 5 of the journal, output has no iteration: then it is that of "without".
SELECT r.id FROM unnest($3::bigint[], $4::text[], $5::integer[], $6::integer[]) AS r (id, task_id, map_index, of_loop),
    (SELECT NULL::integer AS iteration) AS without
WHERE EXISTS (SELECT FROM stream_server.output AS o
              WHERE o.dag_id = $1 AND o.run_id = $2 AND o.task_id = r.task_id AND o.map_index = r.map_index
                AND iteration IS NOT DISTINCT FROM r.of_loop AND o.id < r.id)

-- serialized_dag --
-- The serialised structure of a DAG version ($1), and its hash. The structure is left out if it has a hash ($2). It comes
-- in pieces, one in each row: the event loop of the server would take 40 ms for a text of 20 MiB in one row.
SELECT s.dag_hash, substring(d.bytes FROM 1 + n.number * 262144 FOR 262144) AS piece,
       CASE WHEN s.dag_hash IS DISTINCT FROM $2 THEN s.data_compressed END AS data_compressed
FROM {airflow}.serialized_dag AS s
CROSS JOIN LATERAL (
    SELECT CASE WHEN s.dag_hash IS DISTINCT FROM $2 THEN convert_to(s.data::text, 'UTF8') END AS bytes OFFSET 0
) AS d
LEFT JOIN LATERAL generate_series(0, octet_length(d.bytes) / 262144) AS n (number) ON true
WHERE s.dag_version_id = $1
ORDER BY n.number

-- newest_dag_version --
-- The newest version of a DAG ($1), among some versions ($2) if there are any.
SELECT dag_version_id FROM {airflow}.serialized_dag
WHERE dag_id = $1 AND ($2::uuid[] = '{}' OR dag_version_id = ANY ($2))
ORDER BY created_at DESC LIMIT 1

-- ended_runs --
-- Of the last $4 ended runs of a DAG ($1) other than one ($2), those of a version ($3), the newest first. The limit is
-- in the inner query: otherwise the whole history of the DAG is read if the version is new.
SELECT r.id
FROM (SELECT id, created_dag_version_id FROM {airflow}.dag_run
      WHERE dag_id = $1 AND run_id <> $2 AND state IN ('success', 'failed') ORDER BY id DESC LIMIT $4) AS r
WHERE r.created_dag_version_id = $3
ORDER BY r.id DESC

-- earlier_result_marks --
-- Which of some tasks ($4) of a DAG ($1) have Airflow 3.3's own result mark, according to some runs ($3) of a version
-- ($2). The newest return value decides: its mark is NULL if an older Airflow wrote it. A task that succeeded without a
-- return value has no mark. Other tasks are left out. Without each LIMIT, the planner would read all task instances of the version.
SELECT DISTINCT ON (n.task_id) n.task_id, x.has_value IS TRUE AS has_value,
       CASE WHEN x.has_value THEN x.dag_result ELSE false END AS marked
FROM unnest($4::text[]) AS n (task_id)
CROSS JOIN (SELECT id, dag_id, run_id FROM {airflow}.dag_run WHERE id = ANY ($3::integer[])) AS r
CROSS JOIN (SELECT NULL::boolean AS dag_result) AS without
LEFT JOIN LATERAL (
    SELECT true AS has_value, v.dag_result FROM ({run_values}) AS v WHERE v.task_id = n.task_id LIMIT 1
) AS x ON true
CROSS JOIN LATERAL (
    SELECT FROM ({instances}) AS t
    WHERE t.dag_id = $1 AND t.run_id = r.run_id AND t.task_id = n.task_id AND t.dag_version_id = $2
        AND (x.has_value OR t.state = 'success')
    LIMIT 1
) AS shown
ORDER BY n.task_id, x.has_value, r.id DESC

-- dag_ids_with_tags --
-- DAGs that have one of some tags ($1).
SELECT DISTINCT dag_id FROM {airflow}.dag_tag WHERE name = ANY ($1::text[])

-- recent_runs --
-- The $2 youngest runs of a DAG ($1), or of all DAGs if it is NULL, older than a run ($3) unless that is NULL, and the
-- current end of the journal. One row with a NULL id if there are none.
SELECT m.epoch, pg_current_snapshot()::text AS snapshot, m.pruned_to::text::bigint AS pruned_to,
       n.txid::text::bigint AS newest, n.id AS newest_id, n.at AS newest_at, r.*
FROM stream_server.meta AS m
LEFT JOIN LATERAL (SELECT id, txid, at FROM stream_server.journal ORDER BY txid DESC LIMIT 1) AS n ON true
LEFT JOIN LATERAL (
    SELECT id, dag_id, run_id, state, run_type,
           CASE WHEN queued_at {is_python_time} THEN queued_at END AS queued_at,
           CASE WHEN start_date {is_python_time} THEN start_date END AS start_date,
           CASE WHEN end_date {is_python_time} THEN end_date END AS end_date
    FROM {airflow}.dag_run
    WHERE ($1::text IS NULL OR dag_id = $1) AND ($3::integer IS NULL OR id < $3)
    ORDER BY id DESC
    LIMIT $2
) AS r ON true
ORDER BY r.id DESC

-- return_values --
-- The return values of tasks ($3) of a run ($1 DAG, $2 run). All texts together have at most $4 bytes: beyond that, the
-- text is NULL for the values of the largest tasks. Upgrades from Airflow 2 leave values that are SQL NULL. Of a task in
-- a loop, the last iteration comes last.
SELECT t.task_id, t.map_index, t.bytes,
       CASE WHEN sum(t.bytes) OVER (ORDER BY t.of_task, t.task_id) <= $4 THEN t.text END AS json
FROM (
    SELECT x.task_id, x.map_index, x.iteration, v.bytes, v.text, sum(v.bytes) OVER (PARTITION BY x.task_id) AS of_task
    FROM (SELECT NULL::boolean AS dag_result) AS without
    CROSS JOIN {airflow}.dag_run AS r
    CROSS JOIN LATERAL ({run_values}) AS x
    CROSS JOIN LATERAL (SELECT coalesce(x.value::text, 'null') AS text) AS s
    CROSS JOIN LATERAL (SELECT s.text, octet_length(s.text) AS bytes) AS v
    WHERE r.dag_id = $1 AND r.run_id = $2 AND x.task_id = ANY ($3::text[])
) AS t
ORDER BY t.of_task, t.task_id, t.iteration

-- final_values --
-- The values that Airflow's own /wait endpoint returns at the end of a run ($1 DAG, $2 run): the return values of tasks
-- ($3) or, if that is NULL, of the tasks with Airflow's result mark. The text is limited as in return_values ($4).
SELECT t.task_id, t.map_index, t.bytes,
       CASE WHEN sum(t.bytes) OVER (ORDER BY t.of_task, t.task_id) <= $4 THEN t.text END AS json
FROM (
    SELECT x.task_id, x.map_index, x.iteration, v.bytes, v.text, sum(v.bytes) OVER (PARTITION BY x.task_id) AS of_task
    FROM (SELECT NULL::boolean AS dag_result) AS without
    CROSS JOIN {airflow}.dag_run AS r
    CROSS JOIN LATERAL ({run_values}) AS x
    CROSS JOIN LATERAL (SELECT coalesce(x.value::text, 'null') AS text) AS s
    CROSS JOIN LATERAL (SELECT s.text, octet_length(s.text) AS bytes) AS v
    WHERE r.dag_id = $1 AND r.run_id = $2
        AND CASE WHEN $3::text[] IS NULL THEN x.dag_result ELSE x.task_id = ANY ($3) END
) AS t
ORDER BY t.of_task, t.task_id, t.iteration

-- claim_run --
-- Claims a run ($3) for a key ($1) and a request ($2), for $4 seconds.
SELECT claimed_run, claimed_for, first FROM stream_server.claim($1, $2, $3, make_interval(secs => $4))

-- release_run --
-- Releases the claim of a key ($1) on a run ($2).
SELECT stream_server.release($1, $2)

-- register_runs --
-- Registers, for $4 seconds, that a server ($3) has clients that watch some runs ($1 DAGs, $2 runs); if $5, only runs
-- that another server has registered. Returns the registered runs. On a read replica: none.
SELECT w.waited_dag, w.waited_run
FROM (SELECT WHERE NOT pg_is_in_recovery()) AS writable,
     LATERAL stream_server.wait($1::text[], $2::text[], $3, make_interval(secs => $4), $5) AS w

-- unregister_runs --
-- Unregisters a server ($3) for some runs ($1 DAGs, $2 runs), and returns the runs that other servers have registered.
SELECT w.waited_dag, w.waited_run
FROM (SELECT WHERE NOT pg_is_in_recovery()) AS writable,
     LATERAL stream_server.wait_no_more($1::text[], $2::text[], $3) AS w

-- store_ticket --
-- Stores a ticket ($1) of a holder ($2) for paths ($3), with a sealed credential ($4), for $5 seconds, unless the
-- holder has $6.
SELECT stream_server.keep_ticket($1, $2, $3, $4, make_interval(secs => $5), $6)

-- redeem_ticket --
-- Deletes a ticket ($1), and returns its paths, its sealed credential and whether it was still valid.
SELECT for_paths, sealed, good FROM stream_server.redeem_ticket($1)

-- restore_triggers --
-- Restores the triggers that are missing, and returns how many. On a read replica: 0.
SELECT CASE WHEN pg_is_in_recovery() THEN 0 ELSE stream_server.put_back(also_disabled => false) END

-- prune_journal --
-- Deletes rows that are older than $1 seconds or beyond $3 bytes, at most $2, of those that a snapshot ($4) covers; if
-- $5, starting where the last call ended. Returns how many. On a read replica: 0.
SELECT CASE WHEN pg_is_in_recovery() THEN 0
            ELSE stream_server.prune(make_interval(secs => $1), $2, $3, $4::text::pg_snapshot, $5) END

-- current_snapshot --
SELECT pg_current_snapshot()::text

-- gauges --
-- The size of the journal and of the output of tasks, the rows that wait for vacuum, the number of dropped writes, and
-- the used share of PostgreSQL's notification queue, which all databases share.
SELECT coalesce(s.n_live_tup, 0) AS live_rows, coalesce(s.n_dead_tup, 0) AS dead_rows,
       pg_table_size(c.oid) + coalesce(pg_table_size(o.oid), 0) AS table_bytes,
       pg_indexes_size(c.oid) + coalesce(pg_indexes_size(o.oid), 0) AS index_bytes,
       l.last_value + l.is_called::integer AS dropped_writes,
       pg_notification_queue_usage() AS notify_queue_usage
FROM stream_server.losses AS l, pg_class AS c
LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid
LEFT JOIN pg_class AS o ON o.relnamespace = c.relnamespace AND o.relname = 'output'
WHERE c.oid = 'stream_server.journal'::regclass

-- is_origin_known --
-- Whether this version of the journal knows to which cluster it belongs, and this role may ask.
SELECT coalesce(has_function_privilege(to_regprocedure('stream_server.foreign_reason()'), 'EXECUTE'), false)

-- foreign_reason --
-- Why the transaction ids of the journal are not those of this cluster, or NULL.
SELECT stream_server.foreign_reason()

-- adopt_journal --
-- Starts a new history if the journal is foreign. Returns whether it did.
SELECT stream_server.adopt()
