-- Parts of queries.sql for tables with map_index (Airflow 3.0 to 3.3). They have the same names and columns as those in
-- reads_tries.sql. A part may contain the parts after it.
--
-- Only Airflow 3.3 has xcom.dag_result. The unqualified name dag_result is resolved in the inner FROM first (the column
-- of xcom), and else in the FROM around it (the NULL of "without", which each query with such a part has). PostgreSQL
-- resolves it again when the table changes, so an upgrade or downgrade of Airflow needs no restart.

-- is_abandoned --
-- Whether the current try of a task instance (s) of a run ($1 DAG, $2 run) was abandoned, by a retry or a clear. Airflow
-- copies an abandoned try to task_instance_history, while task_instance keeps its number until the next try starts.
EXISTS (
    SELECT FROM {airflow}.task_instance AS t
    JOIN {airflow}.task_instance_history AS h USING (dag_id, run_id, task_id, map_index, try_number)
    WHERE t.dag_id = $1 AND t.run_id = $2 AND t.task_id = s.task_id AND t.map_index = s.map_index
)

-- run_values --
-- The return values of a run (r).
SELECT y.task_id, y.map_index, NULL::integer AS iteration, y.value, dag_result
FROM {airflow}.xcom AS y
WHERE y.dag_run_id = r.id AND y.key = 'return_value'

-- instance_value --
-- The return value of a task instance (t) of a run (r).
SELECT true AS has_value, y.timestamp, y.value, dag_result
FROM {airflow}.xcom AS y
WHERE y.dag_run_id = r.id AND y.task_id = t.task_id AND y.map_index = t.map_index AND y.key = 'return_value'

-- instances --
-- The task instances of all runs.
SELECT i.id, i.dag_id, i.run_id, i.task_id, i.map_index, NULL::integer AS iteration, i.try_number, i.state,
       i.start_date, i.end_date, i.next_method, i.trigger_timeout, i.dag_version_id
FROM {airflow}.task_instance AS i
