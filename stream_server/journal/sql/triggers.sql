-- The triggers: which are wanted, which exist, and their restoration. Every install creates these functions again.

-- Returns each trigger: its wanted and its existing (standing) definition, by the columns and tables that exist.
-- hitl_detail is left out if this version of Airflow does not have it.
CREATE OR REPLACE FUNCTION stream_server.triggers()
    RETURNS TABLE (table_name text, trigger_name text, wanted text, standing text, enabled boolean)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
    WITH facts AS (
        SELECT m.airflow_schema,
               EXISTS (SELECT FROM pg_attribute a
                       WHERE a.attrelid = to_regclass(format('%I.task_instance', m.airflow_schema))
                         AND a.attname IN ('working_set', 'region_index') AND NOT a.attisdropped) AS has_tries,
               to_regclass(format('%I.xcom_v2', m.airflow_schema)) IS NOT NULL AS has_try_xcoms
        FROM stream_server.meta m
    ), expected (table_name, trigger_name, events, level, function_name) AS (
        -- A trigger with transition tables has one event.
        SELECT 'task_instance', t.trigger_name, t.events, t.level, CASE WHEN f.has_tries THEN t.of_try ELSE t.of_task END
        FROM facts f, (
            VALUES ('stream_server_task', 'AFTER UPDATE',
                    'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT',
                    'record_task', 'record_try'),
                   ('stream_server_task_created', 'AFTER INSERT',
                    'REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT', 'record_task', 'record_try'),
                   ('stream_server_deletion', 'AFTER DELETE',
                    'REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT WHEN'
                    ' ((current_setting(''stream_server.deletes_runs''::text, true) IS DISTINCT FROM ''on''::text))',
                    'record_deletion', 'record_try_deletion')
        ) t (trigger_name, events, level, of_task, of_try)
        UNION ALL
        SELECT CASE WHEN f.has_try_xcoms THEN 'xcom_v2' ELSE 'xcom' END, 'stream_server_xcom',
               'AFTER INSERT OR UPDATE', 'FOR EACH ROW', CASE WHEN f.has_try_xcoms THEN 'record_try_xcom' ELSE 'record_xcom' END
        FROM facts f
        UNION ALL
        VALUES ('dag_run', 'stream_server_run', 'AFTER INSERT OR UPDATE', 'FOR EACH ROW', 'record_run'),
               ('dag_run', 'stream_server_run_deletion', 'BEFORE DELETE', 'FOR EACH STATEMENT', 'begin_run_deletion'),
               ('dag_run', 'stream_server_run_deleted', 'AFTER DELETE',
                'REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT', 'record_run_deletion'),
               ('hitl_detail', 'stream_server_input', 'AFTER INSERT OR UPDATE', 'FOR EACH ROW', 'record_input')
    )
    SELECT e.table_name,
           e.trigger_name,
           format('CREATE TRIGGER %I %s ON %I.%I %s EXECUTE FUNCTION stream_server.%I()',
                  e.trigger_name, e.events, m.airflow_schema, e.table_name, e.level, e.function_name),
           pg_get_triggerdef(t.oid),
           coalesce(t.tgenabled IN ('O', 'A'), false)
    FROM expected e
    CROSS JOIN stream_server.meta m
    LEFT JOIN pg_namespace n ON n.nspname = m.airflow_schema
    LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = e.table_name
    LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = e.trigger_name
    WHERE c.oid IS NOT NULL OR e.table_name <> 'hitl_detail'
$body$;

-- Restores the triggers that are missing or differ, for example after `airflow db reset`, and returns how many. If
-- also_disabled, restores disabled triggers too, and raises an error if a table is missing. Otherwise skips missing
-- tables. Triggers that switched themselves off record again: the caller has checked the columns of Airflow's tables.
CREATE OR REPLACE FUNCTION stream_server.put_back(also_disabled boolean) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    missing record;
    restored integer := 0;
BEGIN
    FOR missing IN
        SELECT t.*, m.airflow_schema FROM stream_server.triggers() t, stream_server.meta m
        WHERE (t.standing IS DISTINCT FROM t.wanted OR (also_disabled AND NOT t.enabled))
          AND (also_disabled OR to_regclass(format('%I.%I', m.airflow_schema, t.table_name)) IS NOT NULL)
    LOOP
        -- The TRIGGER privilege allows to create and, from PostgreSQL 14, to replace a trigger on another role's table,
        -- but not to drop it.
        IF missing.standing IS NULL THEN
            EXECUTE missing.wanted;
        ELSIF current_setting('server_version_num')::integer >= 140000 THEN
            EXECUTE replace(missing.wanted, 'CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER');
        ELSE
            EXECUTE format('DROP TRIGGER %I ON %I.%I',
                           missing.trigger_name, missing.airflow_schema, missing.table_name);
            EXECUTE missing.wanted;
        END IF;
        restored := restored + 1;
    END LOOP;
    IF pg_sequence_last_value('stream_server.unknown_schema') IS NOT NULL THEN
        PERFORM setval('stream_server.unknown_schema', 1, false);
        -- After the reset: each transaction that recorded nothing has begun before this loss, so all servers resync.
        PERFORM nextval('stream_server.losses');
    END IF;
    RETURN restored;
END
$body$;

-- Disables the triggers at once, by functions that do nothing: this needs no lock on Airflow's tables, and none that
-- its transactions hold. The install script enables them: it creates the functions again.
CREATE OR REPLACE FUNCTION stream_server.switch_off() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    function_name text;
BEGIN
    FOREACH function_name IN ARRAY
        ARRAY['record_task', 'record_try', 'record_deletion', 'record_try_deletion', 'record_run',
              'begin_run_deletion', 'record_run_deletion', 'record_xcom', 'record_try_xcom', 'record_input']
    LOOP
        EXECUTE format('CREATE OR REPLACE FUNCTION stream_server.%I() RETURNS trigger LANGUAGE plpgsql AS %L',
                       function_name, 'BEGIN RETURN NULL; END');
    END LOOP;
    UPDATE stream_server.meta SET enabled = false;
END
$body$;
