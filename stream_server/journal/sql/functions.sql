-- The trigger functions and triggers. Every install creates them again. {airflow} is the schema of Airflow's tables, as
-- a literal.

INSERT INTO stream_server.meta (version, oldest_server, airflow_schema)
VALUES ({version}, {oldest_server}, {airflow})
ON CONFLICT (singleton) DO UPDATE
SET version = excluded.version, oldest_server = excluded.oldest_server, airflow_schema = excluded.airflow_schema;

-- Notifies idle tails, at most once in a transaction. NOTIFY serialises commits, so a transaction does not notify if no
-- tail is idle: active tails read without notifications (docs/decisions/0006).
--
-- Two advisory locks decide. An idle tail holds the idle-consumer lock, {idle_consumers}, in shared mode. So this
-- function tries the lock in exclusive mode: if it fails, a tail is idle. The lock is released at once; CASE guarantees
-- the order of the two calls. A transaction that does not notify holds the unnotified-writer lock,
-- {unnotified_writers}, in shared mode until its end. A tail that becomes idle waits until this lock is free, and reads
-- once more before it waits for NOTIFY.
--
-- The idle-consumer lock is tried a second time, because a tail may have become idle between the first try and the
-- unnotified-writer lock. That tail may have seen the unnotified-writer lock free, and would miss this transaction.
--
-- Names are qualified, because the caller may set no search_path.
CREATE OR REPLACE FUNCTION stream_server.ring() RETURNS void
    LANGUAGE plpgsql
AS $body$
DECLARE
    unused pg_catalog.text;
BEGIN
    IF pg_catalog.current_setting('stream_server.rung', true) OPERATOR(pg_catalog.=) 'on'
        OR pg_catalog.current_setting('stream_server.doorbell', true) OPERATOR(pg_catalog.=) 'off'
    THEN
        RETURN;
    END IF;
    unused := pg_catalog.set_config('stream_server.rung', 'on', true);
    IF (CASE WHEN pg_catalog.pg_try_advisory_lock({idle_consumers})
             THEN pg_catalog.pg_advisory_unlock({idle_consumers}) ELSE false END)
        AND pg_catalog.pg_try_advisory_xact_lock_shared({unnotified_writers})
        AND (CASE WHEN pg_catalog.pg_try_advisory_lock({idle_consumers})
                  THEN pg_catalog.pg_advisory_unlock({idle_consumers}) ELSE false END)
    THEN
        RETURN;
    END IF;
    -- If the queue is full, NOTIFY fails the commit. Without a notification, tails find the row at their next poll.
    IF pg_catalog.pg_notification_queue_usage() OPERATOR(pg_catalog.<) 0.9 THEN
        PERFORM pg_catalog.pg_notify('stream_server', '');
    END IF;
END
$body$;

-- The trigger functions below run inside Airflow's transactions. They must not fail a transaction, must not block it
-- for longer than 100 ms, and must cost almost nothing if no state has changed. So:
--
-- * They name only columns that Airflow's tables have. There are two sets of functions: for tables with map_index
--   (Airflow 3.0 to 3.3), and for those in which each try is a row (functions_tries.sql). Both are always installed;
--   triggers() chooses by the columns. So put_back() can adapt the triggers after `airflow db migrate`.
-- * If a column or table is missing nevertheless, they do nothing from then on (the sequence unknown_schema).
-- * Everything is inside the block with the exception handler: any object of our schema, and any column, may be missing.
-- * After an error they write nothing for the rest of the transaction (stream_server.given_up): its rows in the journal
--   are incomplete anyway, and each further row could wait for lock_timeout again.
-- * They record nothing of a migration of Airflow. They detect it by their table: its columns were changed by the same
--   transaction. Migrations that only change try numbers (3.4) have changed another table before, and change rows that
--   no worker runs.
-- * The exception handler, inserted from exception_handler.sql, depends on no object of our schema outside a block
--   of its own. It is text in each function, and not a function, because that could be missing too.
--
-- The block is a subtransaction. If it writes, it takes a transaction id, and PostgreSQL keeps no more than 64 of them
-- for a transaction in memory (docs/decisions/0014). So the functions for task instances and for deleted runs, of which
-- one statement may change many, are called once for a statement, with its rows in transition tables.

-- Records the created or changed task instances of a statement.
--
-- The n-th row of old_rows is the n-th of new_rows: PostgreSQL adds both when it updates the row. No column identifies
-- a row: a retry changes id, and an expansion map_index. It is also the order in which the rows were locked, which the
-- ids of the journal must follow.
--
-- Most statements update one row, and change no state (heartbeats). For them everything but one query is too expensive:
-- a SET clause, PERFORM, and a join by position. Without SET search_path all names and operators must be qualified: the
-- function has the privileges of its owner, and search_path is that of the caller.
CREATE OR REPLACE FUNCTION stream_server.record_task() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
AS $body$
DECLARE
    has_several_rows pg_catalog.bool;
    has_other_version pg_catalog.bool;
    is_only_try_changed pg_catalog.bool;
    lock_timeout pg_catalog.text;
    unused pg_catalog.text;
BEGIN
    {return_if_schema_unknown}
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        SELECT s.has_several_rows, {has_other_version}, {is_only_try_changed}
        INTO has_several_rows, has_other_version, is_only_try_changed
        FROM (SELECT (SELECT true FROM new_rows OFFSET 1 LIMIT 1) AS has_several_rows) AS s, old_rows AS o, new_rows AS n
        WHERE s.has_several_rows OR {is_task_changed} OR {has_other_version}
        LIMIT 1;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    IF pg_catalog.current_setting('stream_server.given_up', true) OPERATOR(pg_catalog.=) 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' OR has_several_rows THEN
        {return_if_migrating}
    END IF;
    IF has_several_rows THEN
        is_only_try_changed := NOT EXISTS (
            SELECT FROM new_rows AS n
            WHERE n.state OPERATOR(pg_catalog.=) ANY (ARRAY['scheduled', 'queued', 'running', 'deferred']));
    END IF;
    IF is_only_try_changed THEN
        {return_if_catalog_changed}
    END IF;
    lock_timeout := pg_catalog.current_setting('lock_timeout');
    unused := pg_catalog.set_config('lock_timeout', '100ms', true);
    IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN
        INSERT INTO stream_server.journal
            (kind, dag_id, run_id, task_id, map_index, try_number, state, start_date, end_date)
        SELECT 'task', n.dag_id, n.run_id, n.task_id, n.map_index, n.try_number, n.state, n.start_date, n.end_date
        FROM new_rows AS n;
    ELSIF has_several_rows OR has_other_version THEN
        -- FULL, because a plan is kept for statements of any size: an inner join may be planned as nested loops. It is
        -- not reduced to an inner join, since the condition is true for rows that have no partner.
        --
        -- One row is enough for all instances of a run that a transaction moves to another version.
        INSERT INTO stream_server.journal
            (kind, dag_id, run_id, task_id, map_index, try_number, state, previous_state, start_date, end_date)
        WITH changed AS MATERIALIZED (
            SELECT n.*, o.state AS previous_state, {is_task_changed} AS is_task_changed,
                   {has_other_version} AS has_other_version
            FROM (SELECT pg_catalog.row_number() OVER () AS ordinal, r.dag_id, r.run_id, r.task_id, r.map_index,
                         r.try_number, r.state, r.start_date, r.end_date, r.dag_version_id
                  FROM new_rows AS r) AS n
            FULL JOIN (SELECT pg_catalog.row_number() OVER () AS ordinal, r.map_index, r.try_number, r.state,
                              r.dag_version_id
                       FROM old_rows AS r) AS o
                ON o.ordinal OPERATOR(pg_catalog.=) n.ordinal
            WHERE {is_task_changed} OR {has_other_version}
        )
        SELECT c.kind, c.dag_id, c.run_id, c.task_id, c.map_index, c.try_number, c.state, c.previous_state,
               c.start_date, c.end_date
        FROM (
            SELECT 0 AS ordinal, 'run_changed' AS kind, r.dag_id, r.run_id, NULL AS task_id, NULL AS map_index,
                   NULL AS try_number, NULL AS state, NULL AS previous_state, NULL AS start_date, NULL AS end_date
            FROM (SELECT DISTINCT t.dag_id, t.run_id FROM changed AS t WHERE t.has_other_version) AS r
            WHERE coalesce(pg_catalog.current_setting('stream_server.changed_run', true), '')
                  OPERATOR(pg_catalog.<>) pg_catalog.concat(r.dag_id, ' ', r.run_id)
            UNION ALL
            SELECT t.ordinal, 'task', t.dag_id, t.run_id, t.task_id, t.map_index, t.try_number, t.state,
                   t.previous_state, t.start_date, t.end_date
            FROM changed AS t WHERE t.is_task_changed
        ) AS c
        ORDER BY c.ordinal;
    ELSE
        INSERT INTO stream_server.journal
            (kind, dag_id, run_id, task_id, map_index, try_number, state, previous_state, start_date, end_date)
        SELECT 'task', n.dag_id, n.run_id, n.task_id, n.map_index, n.try_number, n.state, o.state, n.start_date,
               n.end_date
        FROM new_rows AS n, old_rows AS o;
    END IF;
    -- An expression is cheaper than PERFORM.
    IF FOUND AND stream_server.ring() IS NULL THEN
        NULL;
    END IF;
    IF has_other_version THEN
        unused := pg_catalog.set_config(
            'stream_server.changed_run',
            (SELECT pg_catalog.concat(n.dag_id, ' ', n.run_id) FROM new_rows AS n LIMIT 1), true);
    END IF;
    unused := pg_catalog.set_config('lock_timeout', lock_timeout, true);
    RETURN NULL;
{exception_handler}
END
$body$;

-- Records that task instances were deleted, by one row for each run. A cascade calls it once for each row that the
-- instances refer to, such as a trigger that they wait for.
--
-- If their run is deleted, it is not called: stream_server.deletes_runs is set then. The WHEN of its trigger checks
-- that, and names no column, so it is in no migration's way. This function can't check it itself: PostgreSQL calls it
-- at the end of the cascade, but `airflow db clean` would call it 200,000 times.
CREATE OR REPLACE FUNCTION stream_server.record_deletion() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
BEGIN
    {return_if_schema_unknown}
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    -- One row is enough for all instances of a run that a transaction deletes.
    INSERT INTO stream_server.journal (kind, dag_id, run_id)
    SELECT DISTINCT 'run_changed', d.dag_id, d.run_id FROM deleted AS d
    WHERE coalesce(current_setting('stream_server.changed_run', true), '') <> concat(d.dag_id, ' ', d.run_id);
    IF FOUND THEN
        PERFORM stream_server.ring();
        PERFORM set_config(
            'stream_server.changed_run',
            (SELECT concat(d.dag_id, ' ', d.run_id) FROM deleted AS d LIMIT 1), true);
    END IF;
    RETURN NULL;
{exception_handler}
END
$body$;

-- Marks a DELETE of runs, before it and until record_run_deletion(), which is called after its cascades. An error in
-- between resets the setting.
CREATE OR REPLACE FUNCTION stream_server.begin_run_deletion() RETURNS trigger
    LANGUAGE plpgsql
AS $body$
BEGIN
    PERFORM pg_catalog.set_config('stream_server.deletes_runs', 'on', true);
    RETURN NULL;
END
$body$;

CREATE OR REPLACE FUNCTION stream_server.record_run() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
DECLARE
    old_state text;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.state IS NOT DISTINCT FROM OLD.state AND NEW.clear_number = OLD.clear_number THEN
            RETURN NULL;
        END IF;
        old_state := OLD.state;
    END IF;
    {return_if_schema_unknown}
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    INSERT INTO stream_server.journal
        (kind, dag_id, run_id, state, previous_state, clear_number, queued_at, start_date, end_date)
    VALUES
        ('run', NEW.dag_id, NEW.run_id, NEW.state, old_state, NEW.clear_number, NEW.queued_at, NEW.start_date,
         NEW.end_date);
    PERFORM stream_server.ring();
    RETURN NULL;
{exception_handler}
END
$body$;

-- Records the deleted runs of a statement. `airflow db clean` deletes any number of them in one.
CREATE OR REPLACE FUNCTION stream_server.record_run_deletion() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
BEGIN
    PERFORM set_config('stream_server.deletes_runs', 'off', true);
    {return_if_schema_unknown}
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    INSERT INTO stream_server.journal (kind, dag_id, run_id, previous_state)
    SELECT 'run_deleted', o.dag_id, o.run_id, o.state FROM old_rows AS o;
    IF FOUND THEN
        PERFORM stream_server.ring();
    END IF;
    RETURN NULL;
{exception_handler}
END
$body$;

-- Records return values and the output of running tasks. Other XComs are no results. A DELETE is not recorded: when a
-- return value is deleted, the state of its task changes too. Output is stored in its own table, up to {output_bytes}
-- bytes of text.
--
-- A migration to Airflow 3.4 renames the table to xcom_v1, with its trigger, and a downgrade inserts rows before it
-- renames it again. Nothing else writes to xcom_v1.
CREATE OR REPLACE FUNCTION stream_server.record_xcom() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
DECLARE
    journal_row record;
    output_text text;
BEGIN
    IF (NEW.key <> 'return_value' AND NEW.key <> '{output_key}') OR TG_TABLE_NAME <> 'xcom' THEN
        RETURN NULL;
    END IF;
    {return_if_schema_unknown}
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        {return_if_migrating}
    END IF;
    IF NEW.key = '{output_key}' AND pg_column_size(NEW.value) <= {output_bytes} THEN
        output_text := NEW.value::text;
    END IF;
    -- Only Airflow 3.3 has dag_result, so it is read through JSON. The value is removed first, from this copy of the
    -- row: it may be large, and to_jsonb would convert it.
    NEW.value := NULL;
    INSERT INTO stream_server.journal (kind, dag_id, run_id, task_id, map_index, xcom_key, dag_result)
    VALUES
        ('xcom', NEW.dag_id, NEW.run_id, NEW.task_id, NEW.map_index, NEW.key,
         (to_jsonb(NEW) ->> 'dag_result')::boolean)
    RETURNING id, txid, at INTO journal_row;
    IF NEW.key = '{output_key}' THEN
        INSERT INTO stream_server.output (id, txid, at, map_index, dag_id, run_id, task_id, body)
        VALUES
            (journal_row.id, journal_row.txid, journal_row.at, NEW.map_index, NEW.dag_id, NEW.run_id, NEW.task_id,
             CASE WHEN octet_length(output_text) <= {output_bytes} THEN output_text END);
    END IF;
    PERFORM stream_server.ring();
    RETURN NULL;
{exception_handler}
END
$body$;

-- A request for human input, or its answer, names its task instance by id. The row has no DAG and no run: to look them
-- up, the trigger would have to read Airflow's tables. Readers do that. A new try takes over the row by its id alone,
-- which asks nothing.
CREATE OR REPLACE FUNCTION stream_server.record_input() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
BEGIN
    {return_if_schema_unknown}
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.ti_id IS DISTINCT FROM OLD.ti_id THEN
        RETURN NULL;
    END IF;
    INSERT INTO stream_server.journal (kind, ti_id, state)
    VALUES ('input', NEW.ti_id, CASE WHEN NEW.responded_at IS NULL THEN 'open' ELSE 'answered' END);
    PERFORM stream_server.ring();
    RETURN NULL;
{exception_handler}
END
$body$;
