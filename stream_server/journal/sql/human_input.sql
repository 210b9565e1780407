-- Requests for human input (`hitl_detail`, from Airflow 3.1 on), each query after its name. They are loaded if the table
-- exists and may be read. {airflow} is the quoted schema of Airflow's tables.
--
-- A task asks while it is running, then waits: as `awaiting_input`, or before Airflow 3.3 as `deferred`. The row has the
-- answer, too. Up to 3.3 a new try takes over the row, with its answer, until the task asks again; from 3.4 on each try
-- has its own row. So a row is a request of the current try only if
--   * it has no answer, and the task waits, or is running for the first time in this try: it is resumed only with an
--     answer, or to fail because there was none;
--   * or its answer is not older than the start of the try, and the try was not given up. A task that waits to be resumed
--     has a next_method; a task that waits for a new try has none, and the start of the old one.

-- current_requests --
-- The requests of the current tries of all task instances.
SELECT t.id AS ti_id, t.dag_id, t.run_id, t.task_id, t.map_index, t.iteration, t.try_number,
       CASE WHEN q.created_at {is_python_time} THEN q.created_at END AS asked_at,
       CASE WHEN t.state = 'awaiting_input' AND t.trigger_timeout {is_python_time} THEN t.trigger_timeout END AS expires_at,
       coalesce(q.created_at < t.start_date, false) AS is_taken_over,
       q.subject, q.body, q.options, q.defaults, q.multiple, q.params, q.assignees,
       CASE WHEN q.responded_at {is_python_time} THEN q.responded_at END AS answered_at,
       q.responded_by, q.chosen_options, q.params_input,
       octet_length(q.subject) + coalesce(octet_length(q.body), 0) + octet_length(q.options::text)
           + coalesce(octet_length(q.defaults::text), 0) + octet_length(q.params::text)
           + coalesce(octet_length(q.assignees::text), 0) + coalesce(octet_length(q.responded_by::text), 0)
           + coalesce(octet_length(q.chosen_options::text), 0) + octet_length(q.params_input::text) AS bytes
FROM {airflow}.hitl_detail AS q
JOIN ({instances}) AS t ON t.id = q.ti_id
WHERE CASE WHEN q.responded_at IS NULL
           THEN t.state IN ('deferred', 'awaiting_input') OR (t.state = 'running' AND t.next_method IS NULL)
           ELSE q.responded_at >= t.start_date AND t.state NOT IN ('restarting', 'up_for_retry')
                AND (t.state NOT IN ('scheduled', 'queued') OR t.next_method IS NOT NULL) END

-- request_record --
-- A request (c) as JSON. The content is left out if it has more than {request_bytes} bytes, or if the contents of the run
-- that are sent have more than {all_request_bytes} together. The newest ones are sent.
json_build_object(
    'dag_id', c.dag_id, 'run_id', c.run_id, 'task_id', c.task_id, 'map_index', c.map_index, 'iteration', c.iteration,
    'try_number', c.try_number,
    'asked_at', c.asked_at, 'expires_at', c.expires_at, 'is_taken_over', c.is_taken_over,
    'answered_at', c.answered_at, 'bytes', c.bytes,
    'content', CASE
        WHEN c.bytes <= {request_bytes}
             AND sum(CASE WHEN c.bytes <= {request_bytes} THEN c.bytes ELSE 0 END)
                 OVER (PARTITION BY c.dag_id, c.run_id ORDER BY c.asked_at DESC, c.ti_id) <= {all_request_bytes}
        THEN json_build_object(
            'subject', c.subject, 'body', c.body, 'options', c.options, 'defaults', c.defaults, 'multiple', c.multiple,
            'params', c.params, 'assignees', c.assignees, 'by', c.responded_by,
            'chosen_options', c.chosen_options, 'params_input', c.params_input) END
)::text

-- requests_of_run --
-- The requests of a run ($1 DAG, $2 run).
SELECT c.ti_id, {request_record} AS record FROM ({current_requests}) AS c WHERE c.dag_id = $1 AND c.run_id = $2

-- no_requests --
-- The same if there is no table.
SELECT NULL::uuid AS ti_id, NULL::text AS record WHERE false

-- human_input --
-- The requests of some task instances: by their ids ($1), or by their names ($2 DAGs, $3 runs, $4 tasks, $5 map indexes,
-- $6 iterations).
SELECT c.ti_id, {request_record} AS record
FROM (SELECT id FROM unnest($1::uuid[]) AS id
      UNION
      SELECT i.id
      FROM unnest($2::text[], $3::text[], $4::text[], $5::integer[], $6::integer[])
          AS n (dag_id, run_id, task_id, map_index, iteration)
      JOIN ({instances}) AS i USING (dag_id, run_id, task_id, map_index)
      WHERE i.iteration IS NOT DISTINCT FROM n.iteration) AS wanted
JOIN ({current_requests}) AS c ON c.ti_id = wanted.id
