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

-- Deletes the oldest rows, those older than an age and those beyond a size in bytes, at_most so many, and returns how
-- many; one replica does it at a time. Only the oldest are looked at, so that a call costs the same however long the
-- journal is: from the first row on, or from where the call before has ended (onward), which saves walking over all that
-- was deleted and that vacuum could not remove yet.
--
-- What a snapshot (settled) had not seen stays, however old it is: its transaction may have committed only now. What is
-- NULL sets no bound.
--
-- The size is that of the rows left, not of the file, which does not shrink when rows are deleted. They are counted by
-- the difference of their identities; to each come 40 bytes of table and index around it.
CREATE OR REPLACE FUNCTION stream_server.prune(
    age interval, at_most integer, size bigint DEFAULT NULL, settled pg_snapshot DEFAULT NULL,
    onward boolean DEFAULT false
) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $body$
DECLARE
    start xid8 := '0';
    youngest xid8;
    deleted integer;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('stream_server prune')) THEN
        RETURN 0;
    END IF;
    IF onward THEN
        SELECT coalesce(m.pruned_to, start) INTO start FROM stream_server.meta m;
    END IF;
    WITH oldest AS MATERIALIZED (
        SELECT j.ctid, j.id, j.txid, j.at, pg_column_size(j.*) + 40 AS bytes,
               row_number() OVER (ORDER BY j.txid) AS place
        FROM stream_server.journal j WHERE j.txid >= start
        ORDER BY j.txid LIMIT at_most
    ), excess AS MATERIALIZED (
        SELECT (SELECT j.id FROM stream_server.journal j WHERE j.txid >= start ORDER BY j.txid DESC LIMIT 1)
               - max(o.id) + count(*) - floor(size / avg(o.bytes)) AS rows
        FROM oldest o
    ), gone AS (
        DELETE FROM stream_server.journal j USING oldest o, excess e
        WHERE j.ctid = o.ctid
          AND (o.at < clock_timestamp() - age OR o.place <= e.rows)
          AND (settled IS NULL OR pg_visible_in_snapshot(o.txid, settled))
        RETURNING j.txid
    )
    SELECT count(*), max(txid::text::numeric)::text::xid8 INTO deleted, youngest FROM gone;
    IF deleted > 0 THEN
        UPDATE stream_server.meta SET pruned_to = greatest(pruned_to, youngest);
    END IF;
    RETURN deleted;
END
$body$;

-- Claims a run for a key, for a time, and returns the run, for whom it was claimed, and whether by this call. Of those who
-- call at once, one is first. Some claims whose time is over go at each call.
CREATE OR REPLACE FUNCTION stream_server.claim(wanted bytea, request bytea, run_id text, lifetime interval)
    RETURNS TABLE (claimed_run text, claimed_for bytea, first boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    DELETE FROM stream_server.claims c
    WHERE c.key IN (SELECT o.key FROM stream_server.claims o WHERE o.expires < now() AND o.key <> wanted
                    LIMIT 10 FOR UPDATE SKIP LOCKED);
    -- The claim of somebody else may be released between our finding it and our reading it.
    WHILE claimed_run IS NULL LOOP
        INSERT INTO stream_server.claims AS c VALUES (wanted, request, run_id, now() + lifetime)
        ON CONFLICT ON CONSTRAINT claims_pkey DO UPDATE
        SET request = excluded.request, run_id = excluded.run_id, expires = excluded.expires WHERE c.expires < now();
        first := FOUND;
        SELECT c.run_id, c.request INTO claimed_run, claimed_for FROM stream_server.claims c WHERE c.key = wanted;
    END LOOP;
    RETURN NEXT;
END
$body$;

-- Gives a claim back, whose run Airflow did not want to create.
CREATE OR REPLACE FUNCTION stream_server.release(wanted bytea, run text) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
    DELETE FROM stream_server.claims WHERE key = wanted AND run_id = run
$body$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA stream_server FROM PUBLIC;

SELECT stream_server.put_back(also_disabled => true);

-- Where the triggers had been switched off, they stay off.
SELECT stream_server.switch_off() FROM stream_server.meta WHERE NOT enabled;
