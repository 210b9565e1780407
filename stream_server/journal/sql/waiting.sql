-- Why runs do not proceed, and what it reads of Airflow's pools, each query after its name.

-- waiting_runs --
-- Of some runs ($1 DAGs, $2 runs), those that are not finished and wait because their DAG is paused, because as many of
-- its runs are running as it permits, or because no scheduled instance gets its slots of a pool. Runs of backfills have a
-- limit of their own (DagRun.active_runs_of_dags).
WITH runs AS (
    SELECT r.dag_id, r.run_id, r.state = 'running' AND NOT d.is_paused AS may_start_tasks,
           CASE WHEN d.is_paused THEN 'dag_paused'
                WHEN r.state = 'queued' AND r.run_type <> 'backfill' AND a.active_runs >= d.max_active_runs
                THEN 'active_runs' END AS reason,
           a.active_runs
    FROM unnest($1::text[], $2::text[]) AS k (dag_id, run_id)
    JOIN {airflow}.dag_run AS r ON r.dag_id = k.dag_id AND r.run_id = k.run_id AND r.state IN ('queued', 'running')
    JOIN {airflow}.dag AS d ON d.dag_id = r.dag_id
    LEFT JOIN (
        SELECT o.dag_id, count(*)::integer AS active_runs FROM {airflow}.dag_run AS o
        WHERE o.dag_id = ANY ($1) AND o.state = 'running' AND o.run_type <> 'backfill'
        GROUP BY o.dag_id
    ) AS a ON a.dag_id = r.dag_id
), demands AS MATERIALIZED (
    SELECT r.dag_id, r.run_id, t.pool, min(t.pool_slots) AS needed
    FROM runs AS r
    JOIN {airflow}.task_instance AS t ON t.dag_id = r.dag_id AND t.run_id = r.run_id AND t.state = 'scheduled'
    WHERE r.may_start_tasks
    GROUP BY r.dag_id, r.run_id, t.pool
), pools AS ({pools}), full_pools AS (
    SELECT DISTINCT ON (f.dag_id, f.run_id) f.*
    FROM (
        SELECT n.dag_id, n.run_id, n.pool, n.needed, p.slots, p.occupied,
               bool_and(p.slots IS NULL OR (p.slots >= 0 AND p.occupied + n.needed > p.slots))
                   OVER (PARTITION BY n.dag_id, n.run_id) AS are_all_full
        FROM demands AS n LEFT JOIN pools AS p ON p.pool = n.pool
        WHERE {may_read_pools}
    ) AS f
    WHERE f.are_all_full
    ORDER BY f.dag_id, f.run_id, f.pool
)
SELECT r.dag_id, r.run_id, coalesce(r.reason, 'pool') AS reason,
       CASE WHEN r.reason = 'active_runs' THEN r.active_runs END AS active_runs, p.pool, p.slots, p.occupied, p.needed
FROM runs AS r
LEFT JOIN full_pools AS p ON p.dag_id = r.dag_id AND p.run_id = r.run_id
WHERE r.reason IS NOT NULL OR p.pool IS NOT NULL

-- pools --
-- The pools that runs wait for, with the slots that are occupied as Pool.slots_stats counts them. -1 slots are unlimited.
SELECT s.pool, s.slots, coalesce(sum(t.pool_slots), 0)::integer AS occupied
FROM {airflow}.slot_pool AS s
LEFT JOIN {airflow}.task_instance AS t
    ON t.pool = s.pool AND t.state IN ('running', 'queued', 'deferred')
    AND (t.state <> 'deferred' OR s.include_deferred)
WHERE s.pool IN (SELECT pool FROM demands)
GROUP BY s.pool, s.slots

-- no_pools --
-- For a role that may not read them.
SELECT NULL::text AS pool, NULL::integer AS slots, NULL::integer AS occupied
