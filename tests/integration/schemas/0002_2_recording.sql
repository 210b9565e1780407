-- The functions and triggers, made anew by every install. 'public' is the schema that holds Airflow's tables, as a literal.

INSERT INTO stream_server.meta (version, oldest_server, airflow_schema)
VALUES (2, 1, 'public')
ON CONFLICT (singleton) DO UPDATE
SET version = excluded.version, oldest_server = excluded.oldest_server, airflow_schema = excluded.airflow_schema;

-- Rings the doorbell, once in a transaction, for those tails that sleep. NOTIFY makes commits wait for each other, so a
-- transaction is silent where every tail is awake and reads on by itself (docs/decisions/0006).
--
-- A sleeping tail holds 1937011301, 1 shared, so trying it exclusive, for an instant, tells whether there is one. CASE sees to
-- it that nothing comes between the two calls. A silent transaction holds 1937011301, 2 until its end: a tail that is about to
-- sleep waits for it, and reads once more. The second look is for a tail that has lain down between the first and the lock.
CREATE OR REPLACE FUNCTION stream_server.ring() RETURNS void
    LANGUAGE plpgsql
AS $body$
BEGIN
    IF current_setting('stream_server.rung', true) = 'on' OR current_setting('stream_server.doorbell', true) = 'off' THEN
        RETURN;
    END IF;
    PERFORM set_config('stream_server.rung', 'on', true);
    IF (CASE WHEN pg_try_advisory_lock(1937011301, 1) THEN pg_advisory_unlock(1937011301, 1) ELSE false END)
        AND pg_try_advisory_xact_lock_shared(1937011301, 2)
        AND (CASE WHEN pg_try_advisory_lock(1937011301, 1) THEN pg_advisory_unlock(1937011301, 1) ELSE false END)
    THEN
        RETURN;
    END IF;
    -- A full queue would fail the commit. Tails look by themselves now and then.
    IF pg_notification_queue_usage() < 0.9 THEN
        PERFORM pg_notify('stream_server', '');
    END IF;
END
$body$;

-- The functions below run inside Airflow's transactions. They must not fail them, must not block them for longer than
-- lock_timeout, and must cost next to nothing where no state has changed. They name only columns that Airflow 3.0 to 3.3
-- all have, and nothing of ours outside the guarded block. After a failure they are silent for the rest of the transaction,
-- which is incomplete in the journal anyway.

CREATE OR REPLACE FUNCTION stream_server.record_task() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
DECLARE
    before text;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.state IS NOT DISTINCT FROM OLD.state
            AND NEW.try_number IS NOT DISTINCT FROM OLD.try_number
            AND NEW.map_index = OLD.map_index
        THEN
            RETURN NULL;
        END IF;
        before := OLD.state;
    END IF;
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    INSERT INTO stream_server.journal
        (kind, dag_id, run_id, task_id, map_index, try_number, state, previous_state, start_date, end_date)
    VALUES
        ('task', NEW.dag_id, NEW.run_id, NEW.task_id, NEW.map_index, NEW.try_number, NEW.state, before,
         NEW.start_date, NEW.end_date);
    PERFORM stream_server.ring();
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    PERFORM set_config('stream_server.given_up', 'on', true);
    RAISE LOG 'stream_server could not record a transition: %', SQLERRM;
    BEGIN
        PERFORM nextval('stream_server.losses');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
END
$body$;

CREATE OR REPLACE FUNCTION stream_server.record_run() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
DECLARE
    before text;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.state IS NOT DISTINCT FROM OLD.state AND NEW.clear_number = OLD.clear_number THEN
            RETURN NULL;
        END IF;
        before := OLD.state;
    END IF;
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        INSERT INTO stream_server.journal (kind, dag_id, run_id, previous_state)
        VALUES ('run_deleted', OLD.dag_id, OLD.run_id, OLD.state);
    ELSE
        INSERT INTO stream_server.journal
            (kind, dag_id, run_id, state, previous_state, clear_number, queued_at, start_date, end_date)
        VALUES
            ('run', NEW.dag_id, NEW.run_id, NEW.state, before, NEW.clear_number, NEW.queued_at, NEW.start_date,
             NEW.end_date);
    END IF;
    PERFORM stream_server.ring();
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    PERFORM set_config('stream_server.given_up', 'on', true);
    RAISE LOG 'stream_server could not record a transition: %', SQLERRM;
    BEGIN
        PERFORM nextval('stream_server.losses');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
END
$body$;

-- XComs other than return values answer nobody. A return value that goes away does so with a change of its task's state.
CREATE OR REPLACE FUNCTION stream_server.record_xcom() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
BEGIN
    IF NEW.key <> 'return_value' THEN
        RETURN NULL;
    END IF;
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    -- dag_result exists from Airflow 3.3 on. The value is set aside first: it may be large, and this is our copy.
    NEW.value := NULL;
    INSERT INTO stream_server.journal (kind, dag_id, run_id, task_id, map_index, xcom_key, dag_result)
    VALUES
        ('xcom', NEW.dag_id, NEW.run_id, NEW.task_id, NEW.map_index, NEW.key,
         (to_jsonb(NEW) ->> 'dag_result')::boolean);
    PERFORM stream_server.ring();
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    PERFORM set_config('stream_server.given_up', 'on', true);
    RAISE LOG 'stream_server could not record a transition: %', SQLERRM;
    BEGIN
        PERFORM nextval('stream_server.losses');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
END
$body$;

CREATE OR REPLACE FUNCTION stream_server.record_input() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
BEGIN
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    INSERT INTO stream_server.journal (kind, ti_id) VALUES ('input', NEW.ti_id);
    PERFORM stream_server.ring();
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    PERFORM set_config('stream_server.given_up', 'on', true);
    RAISE LOG 'stream_server could not record a transition: %', SQLERRM;
    BEGIN
        PERFORM nextval('stream_server.losses');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
END
$body$;

