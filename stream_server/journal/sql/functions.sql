-- The functions and triggers, made anew by every install. {airflow} is the schema that holds Airflow's tables, as a literal.

INSERT INTO stream_server.meta (version, oldest_server, airflow_schema)
VALUES ({version}, {oldest_server}, {airflow})
ON CONFLICT (singleton) DO UPDATE
SET version = excluded.version, oldest_server = excluded.oldest_server, airflow_schema = excluded.airflow_schema;

-- Rings the doorbell, once in a transaction, for those tails that sleep. NOTIFY makes commits wait for each other, so a
-- transaction is silent where every tail is awake and reads on by itself (docs/decisions/0006).
--
-- A sleeping tail holds {sleepers} shared, so trying it exclusive, for an instant, tells whether there is one. CASE sees to
-- it that nothing comes between the two calls. A silent transaction holds {silent} until its end: a tail that is about to
-- sleep waits for it, and reads once more. The second look is for a tail that has lain down between the first and the lock.
CREATE OR REPLACE FUNCTION stream_server.ring() RETURNS void
    LANGUAGE plpgsql
AS $body$
BEGIN
    IF current_setting('stream_server.rung', true) = 'on' OR current_setting('stream_server.doorbell', true) = 'off' THEN
        RETURN;
    END IF;
    PERFORM set_config('stream_server.rung', 'on', true);
    IF (CASE WHEN pg_try_advisory_lock({sleepers}) THEN pg_advisory_unlock({sleepers}) ELSE false END)
        AND pg_try_advisory_xact_lock_shared({silent})
        AND (CASE WHEN pg_try_advisory_lock({sleepers}) THEN pg_advisory_unlock({sleepers}) ELSE false END)
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
-- What a running task says is an XCom too, whose value is kept beside the journal, up to {output_bytes} bytes of text.
CREATE OR REPLACE FUNCTION stream_server.record_xcom() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $body$
DECLARE
    written record;
    said text;
BEGIN
    IF NEW.key <> 'return_value' AND NEW.key <> '{output_key}' THEN
        RETURN NULL;
    END IF;
    IF current_setting('stream_server.given_up', true) = 'on' THEN
        RETURN NULL;
    END IF;
    IF NEW.key = '{output_key}' AND pg_column_size(NEW.value) <= {output_bytes} THEN
        said := NEW.value::text;
    END IF;
    -- dag_result exists from Airflow 3.3 on. The value is set aside first: it may be large, and this is our copy.
    NEW.value := NULL;
    INSERT INTO stream_server.journal (kind, dag_id, run_id, task_id, map_index, xcom_key, dag_result)
    VALUES
        ('xcom', NEW.dag_id, NEW.run_id, NEW.task_id, NEW.map_index, NEW.key,
         (to_jsonb(NEW) ->> 'dag_result')::boolean)
    RETURNING id, txid, at INTO written;
    IF NEW.key = '{output_key}' THEN
        INSERT INTO stream_server.output (id, txid, at, map_index, dag_id, run_id, task_id, body)
        VALUES
            (written.id, written.txid, written.at, NEW.map_index, NEW.dag_id, NEW.run_id, NEW.task_id,
             CASE WHEN octet_length(said) <= {output_bytes} THEN said END);
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

-- A request for human input names its task instance by id. The row has no DAG and no run: to look them up, the trigger would
-- have to read Airflow's tables. Readers skip rows of this kind: nothing consumes them yet.
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

-- Every trigger that should stand, beside what stands. A table that this version of Airflow does not have is left out.
CREATE OR REPLACE FUNCTION stream_server.triggers()
    RETURNS TABLE (table_name text, trigger_name text, wanted text, standing text, enabled boolean)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
    WITH expected (table_name, trigger_name, events, function_name) AS (
        VALUES ('task_instance', 'stream_server_task', 'INSERT OR UPDATE', 'record_task'),
               ('dag_run', 'stream_server_run', 'INSERT OR DELETE OR UPDATE', 'record_run'),
               ('xcom', 'stream_server_xcom', 'INSERT OR UPDATE', 'record_xcom'),
               ('hitl_detail', 'stream_server_input', 'INSERT OR UPDATE', 'record_input')
    )
    SELECT e.table_name,
           e.trigger_name,
           format('CREATE TRIGGER %I AFTER %s ON %I.%I FOR EACH ROW EXECUTE FUNCTION stream_server.%I()',
                  e.trigger_name, e.events, m.airflow_schema, e.table_name, e.function_name),
           pg_get_triggerdef(t.oid),
           coalesce(t.tgenabled IN ('O', 'A'), false)
    FROM expected e
    CROSS JOIN stream_server.meta m
    LEFT JOIN pg_namespace n ON n.nspname = m.airflow_schema
    LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = e.table_name
    LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = e.trigger_name
    WHERE c.oid IS NOT NULL OR e.table_name <> 'hitl_detail'
$body$;

-- Puts back the triggers that are missing or differ, as after `airflow db reset`; disabled ones only where asked to, and
-- otherwise none on a table that is missing itself.
CREATE OR REPLACE FUNCTION stream_server.put_back(also_disabled boolean) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    missing record;
    done integer := 0;
BEGIN
    FOR missing IN
        SELECT t.*, m.airflow_schema FROM stream_server.triggers() t, stream_server.meta m
        WHERE (t.standing IS DISTINCT FROM t.wanted OR (also_disabled AND NOT t.enabled))
          AND (also_disabled OR to_regclass(format('%I.%I', m.airflow_schema, t.table_name)) IS NOT NULL)
    LOOP
        -- Whoever may make a trigger on a table of another role may replace it (from PostgreSQL 14 on), but not drop it.
        IF missing.standing IS NULL THEN
            EXECUTE missing.wanted;
        ELSIF current_setting('server_version_num')::integer >= 140000 THEN
            EXECUTE replace(missing.wanted, 'CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER');
        ELSE
            EXECUTE format('DROP TRIGGER %I ON %I.%I',
                           missing.trigger_name, missing.airflow_schema, missing.table_name);
            EXECUTE missing.wanted;
        END IF;
        done := done + 1;
    END LOOP;
    RETURN done;
END
$body$;

-- Switches the triggers off at once: it needs no lock on Airflow's tables, nor any that its transactions hold. Making the
-- functions anew switches them on.
CREATE OR REPLACE FUNCTION stream_server.switch_off() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['record_task', 'record_run', 'record_xcom', 'record_input'] LOOP
        EXECUTE format('CREATE OR REPLACE FUNCTION stream_server.%I() RETURNS trigger LANGUAGE plpgsql AS %L',
                       name, 'BEGIN RETURN NULL; END');
    END LOOP;
    UPDATE stream_server.meta SET enabled = false;
END
$body$;
