-- Parts of queries.sql for tables in which each try of a task is a row (Airflow 3.4); see reads_instances.sql, and
-- functions_tries.sql for these tables. Values from before the migration to 3.4 are in xcom_v1, unless the same try has
-- one in xcom_v2.

-- is_abandoned --
-- A row that waits for its next try has replaced the abandoned one. Without a row, the task instance left the run.
NOT EXISTS (
    SELECT FROM ({instances}) AS i
    WHERE i.dag_id = $1 AND i.run_id = $2 AND i.task_id = s.task_id AND i.map_index = s.map_index
        AND i.iteration IS NOT DISTINCT FROM s.iteration AND coalesce(i.state, 'up_for_retry') <> 'up_for_retry'
)

-- run_values --
SELECT t.task_id, t.map_index, t.iteration, y.value, y.dag_result
FROM ({instances}) AS t
CROSS JOIN LATERAL ({instance_value}) AS y
WHERE t.dag_id = r.dag_id AND t.run_id = r.run_id

-- instance_value --
SELECT true AS has_value, y.timestamp, y.value, y.dag_result
FROM {airflow}.xcom_v2 AS y
WHERE y.task_instance_id = t.id AND y.key = 'return_value'
UNION ALL
SELECT true, y.timestamp, y.value, y.dag_result
FROM {airflow}.legacy_task_data_owner AS l
JOIN {airflow}.xcom_v1 AS y USING (dag_id, task_id, run_id, map_index)
WHERE l.task_instance_id = t.id AND y.key = 'return_value'
    AND NOT EXISTS (SELECT FROM {airflow}.xcom_v2 AS z
                    WHERE z.task_instance_id = t.id AND z.key = 'return_value')

-- instances --
-- The live try of each task instance.
SELECT n.id, n.dag_id, n.run_id, n.task_id, {map_index} AS map_index, {iteration} AS iteration,
       {last_try} AS try_number, n.state, n.start_date, n.end_date, n.next_method, n.trigger_timeout,
       n.dag_version_id
FROM {airflow}.task_instance AS n
LEFT JOIN {airflow}.dynamic_region AS g ON g.id = n.region_id
WHERE n.working_set
