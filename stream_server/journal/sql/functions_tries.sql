-- The trigger functions for tables in which each try of a task is a row of its own (Airflow 3.4), with the rules of
-- functions.sql. {airflow_tables} is the schema of Airflow's tables, as an identifier.
--
-- The live try of a task instance has working_set = true. When a try is given up, Airflow sets working_set to NULL, and
-- inserts its successor: a copy with another id, the next number and the old state. So:
--
-- * Changes of rows that are not live are not recorded, except that a row without a successor left the run.
-- * A copied state is no transition: the next UPDATE of the successor changes it. The exception is up_for_retry, of
--   which only the successor can be relied on: the old row goes to `failed` in the same transaction, with or without an
--   UPDATE to up_for_retry before.
-- * A row that waits for its first or next try has the number of that try. The journal keeps the meaning of older
--   versions: the number of the last try ({last_try}).
--
-- The journal has the map_index of Airflow's API, and the iteration of a task loop. Both need the region of the row:
-- {map_index} and {iteration}, with the region as g.

-- Records the created or changed tries of a statement; see record_task().
CREATE OR REPLACE FUNCTION stream_server.record_try() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
AS $body$
DECLARE
    has_several_rows pg_catalog.bool;
    has_other_version pg_catalog.bool;
    has_left pg_catalog.bool;
    is_recorded pg_catalog.bool;
    given_up_try pg_catalog.text;
    lock_timeout pg_catalog.text;
    unused pg_catalog.text;
BEGIN
    {return_if_schema_unknown}
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        SELECT s.has_several_rows, {has_other_version} AND n.working_set IS TRUE, {has_left}, {is_try_recorded},
               CASE WHEN n.state OPERATOR(pg_catalog.=) 'up_for_retry'
                        OR (n.working_set IS NULL AND o.state OPERATOR(pg_catalog.<>) 'up_for_retry')
                    THEN pg_catalog.concat(
                        o.state, '|', o.try_number, ' ', o.region_index, ' ', o.task_id, ' ', o.run_id, ' ', o.dag_id)
               END
        INTO has_several_rows, has_other_version, has_left, is_recorded, given_up_try
        FROM (SELECT (SELECT true FROM new_rows OFFSET 1 LIMIT 1) AS has_several_rows) AS s, old_rows AS o, new_rows AS n
        WHERE s.has_several_rows OR {is_try_changed} OR {has_left} OR {has_other_version}
        LIMIT 1;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        IF has_several_rows IS NULL AND NOT is_recorded AND NOT has_other_version AND NOT has_left THEN
            -- The successor, which is inserted next, was in this state before.
            IF given_up_try IS NOT NULL THEN
                unused := pg_catalog.set_config('stream_server.given_up_try', given_up_try, true);
            END IF;
            RETURN NULL;
        END IF;
    END IF;
    IF pg_catalog.current_setting('stream_server.given_up', true) OPERATOR(pg_catalog.=) 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' OR has_several_rows THEN
        {return_if_migrating}
    END IF;
    lock_timeout := pg_catalog.current_setting('lock_timeout');
    unused := pg_catalog.set_config('lock_timeout', '100ms', true);
    IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN
        given_up_try := coalesce(pg_catalog.current_setting('stream_server.given_up_try', true), '');
        INSERT INTO stream_server.journal
            (kind, dag_id, run_id, task_id, map_index, iteration, try_number, state, previous_state, start_date, end_date)
        SELECT 'task', n.dag_id, n.run_id, n.task_id, {map_index}, {iteration}, {last_try}, n.state,
               CASE WHEN pg_catalog.split_part(given_up_try, '|', 2) OPERATOR(pg_catalog.=) pg_catalog.concat(
                        n.try_number OPERATOR(pg_catalog.-) 1, ' ', n.region_index, ' ', n.task_id, ' ', n.run_id, ' ',
                        n.dag_id)
                    THEN pg_catalog.split_part(given_up_try, '|', 1) END,
               n.start_date, n.end_date
        FROM new_rows AS n
        LEFT JOIN {region_of_try}
        WHERE n.working_set IS TRUE
            AND (n.state IS NULL OR n.state OPERATOR(pg_catalog.=) 'up_for_retry'
                 OR n.try_number OPERATOR(pg_catalog.=) 0);
    ELSIF has_several_rows OR has_other_version OR has_left THEN
        -- Pairs of rows, the FULL JOIN and the order as in record_task().
        INSERT INTO stream_server.journal
            (kind, dag_id, run_id, task_id, map_index, iteration, try_number, state, previous_state, start_date, end_date)
        WITH changed AS MATERIALIZED (
            SELECT n.*, o.state AS previous_state, {last_try} AS last_try, {is_try_recorded} AS is_recorded,
                   ({has_other_version} AND n.working_set IS TRUE) OR {has_left} AS has_other_version
            FROM (SELECT pg_catalog.row_number() OVER () AS ordinal, r.dag_id, r.run_id, r.task_id, r.region_id,
                         r.region_index, r.working_set, r.archived_reason, r.try_number, r.state, r.start_date,
                         r.end_date, r.dag_version_id
                  FROM new_rows AS r) AS n
            FULL JOIN (SELECT pg_catalog.row_number() OVER () AS ordinal, r.region_index, r.working_set, r.state,
                              r.dag_version_id
                       FROM old_rows AS r) AS o
                ON o.ordinal OPERATOR(pg_catalog.=) n.ordinal
            WHERE {is_try_changed} OR {has_left} OR {has_other_version}
        )
        SELECT c.kind, c.dag_id, c.run_id, c.task_id, c.map_index, c.iteration, c.try_number, c.state,
               c.previous_state, c.start_date, c.end_date
        FROM (
            SELECT 0 AS ordinal, 'run_changed' AS kind, r.dag_id, r.run_id, NULL AS task_id, NULL AS map_index,
                   NULL AS iteration, NULL AS try_number, NULL AS state, NULL AS previous_state, NULL AS start_date,
                   NULL AS end_date
            FROM (SELECT DISTINCT t.dag_id, t.run_id FROM changed AS t WHERE t.has_other_version) AS r
            WHERE coalesce(pg_catalog.current_setting('stream_server.changed_run', true), '')
                  OPERATOR(pg_catalog.<>) pg_catalog.concat(r.dag_id, ' ', r.run_id)
            UNION ALL
            SELECT n.ordinal, 'task', n.dag_id, n.run_id, n.task_id, {map_index}, {iteration}, n.last_try, n.state,
                   n.previous_state, n.start_date, n.end_date
            FROM changed AS n
            LEFT JOIN {region_of_try}
            WHERE n.is_recorded
        ) AS c
        ORDER BY c.ordinal;
    ELSE
        INSERT INTO stream_server.journal
            (kind, dag_id, run_id, task_id, map_index, iteration, try_number, state, previous_state, start_date, end_date)
        SELECT 'task', n.dag_id, n.run_id, n.task_id, {map_index}, {iteration}, {last_try}, n.state, o.state,
               n.start_date, n.end_date
        FROM old_rows AS o, new_rows AS n
        LEFT JOIN {region_of_try};
    END IF;
    IF FOUND AND stream_server.ring() IS NULL THEN
        NULL;
    END IF;
    IF has_other_version OR has_left THEN
        unused := pg_catalog.set_config(
            'stream_server.changed_run',
            (SELECT pg_catalog.concat(n.dag_id, ' ', n.run_id) FROM new_rows AS n LIMIT 1), true);
    END IF;
    unused := pg_catalog.set_config('lock_timeout', lock_timeout, true);
    RETURN NULL;
{exception_handler}
END
$body$;

-- Records that task instances were deleted; see record_deletion(). Tries that were given up belong to no run state.
CREATE OR REPLACE FUNCTION stream_server.record_try_deletion() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
BEGIN
    {return_if_schema_unknown}
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    INSERT INTO stream_server.journal (kind, dag_id, run_id)
    SELECT DISTINCT 'run_changed', d.dag_id, d.run_id FROM deleted AS d
    WHERE d.working_set AND coalesce(current_setting('stream_server.changed_run', true), '') <> concat(d.dag_id, ' ', d.run_id);
    IF FOUND THEN
        PERFORM stream_server.ring();
        PERFORM set_config(
            'stream_server.changed_run',
            (SELECT concat(d.dag_id, ' ', d.run_id) FROM deleted AS d WHERE d.working_set LIMIT 1), true);
    END IF;
    RETURN NULL;
{exception_handler}
END
$body$;

-- Records return values and output; see record_xcom(). A row names its try by id. The journal needs the coordinates of
-- the try, which may be deleted before a server reads the row. A try that was given up may still push values: no frames
-- are made of them.
CREATE OR REPLACE FUNCTION stream_server.record_try_xcom() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
DECLARE
    journal_row record;
    output_text text;
BEGIN
    IF NEW.key <> 'return_value' AND NEW.key <> '{output_key}' THEN
        RETURN NULL;
    END IF;
    {return_if_schema_unknown}
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    INSERT INTO stream_server.journal (kind, dag_id, run_id, task_id, map_index, iteration, xcom_key, dag_result)
    SELECT 'xcom', n.dag_id, n.run_id, n.task_id, {map_index}, {iteration}, NEW.key, NEW.dag_result
    FROM {airflow_tables}.task_instance AS n
    LEFT JOIN {region_of_try}
    WHERE n.id = NEW.task_instance_id AND n.working_set
    RETURNING id, txid, at, map_index, dag_id, run_id, task_id, iteration INTO journal_row;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF NEW.key = '{output_key}' THEN
        IF pg_column_size(NEW.value) <= {output_bytes} THEN
            output_text := NEW.value::text;
        END IF;
        INSERT INTO stream_server.output (id, txid, at, map_index, dag_id, run_id, task_id, iteration, body)
        VALUES
            (journal_row.id, journal_row.txid, journal_row.at, journal_row.map_index, journal_row.dag_id,
             journal_row.run_id, journal_row.task_id, journal_row.iteration,
             CASE WHEN octet_length(output_text) <= {output_bytes} THEN output_text END);
    END IF;
    PERFORM stream_server.ring();
    RETURN NULL;
{exception_handler}
END
$body$;
