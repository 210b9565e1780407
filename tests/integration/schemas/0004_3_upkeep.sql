-- Returns each trigger: its wanted and its existing (standing) definition. hitl_detail is left out if this version of
-- Airflow does not have it.
CREATE OR REPLACE FUNCTION stream_server.triggers()
    RETURNS TABLE (table_name text, trigger_name text, wanted text, standing text, enabled boolean)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
    WITH expected (table_name, trigger_name, events, level, function_name) AS (
        -- A trigger with transition tables has one event.
        VALUES ('task_instance', 'stream_server_task', 'UPDATE',
                'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT', 'record_task'),
               ('task_instance', 'stream_server_task_created', 'INSERT',
                'REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT', 'record_task'),
               ('task_instance', 'stream_server_deletion', 'DELETE',
                'REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT WHEN ((pg_trigger_depth() = 0))',
                'record_deletion'),
               ('dag_run', 'stream_server_run', 'INSERT OR UPDATE', 'FOR EACH ROW', 'record_run'),
               ('dag_run', 'stream_server_run_deleted', 'DELETE',
                'REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT', 'record_run_deletion'),
               ('xcom', 'stream_server_xcom', 'INSERT OR UPDATE', 'FOR EACH ROW', 'record_xcom'),
               ('hitl_detail', 'stream_server_input', 'INSERT OR UPDATE', 'FOR EACH ROW', 'record_input')
    )
    SELECT e.table_name,
           e.trigger_name,
           format('CREATE TRIGGER %I AFTER %s ON %I.%I %s EXECUTE FUNCTION stream_server.%I()',
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
-- tables.
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
        ARRAY['record_task', 'record_deletion', 'record_run', 'record_run_deletion', 'record_xcom', 'record_input']
    LOOP
        EXECUTE format('CREATE OR REPLACE FUNCTION stream_server.%I() RETURNS trigger LANGUAGE plpgsql AS %L',
                       function_name, 'BEGIN RETURN NULL; END');
    END LOOP;
    UPDATE stream_server.meta SET enabled = false;
END
$body$;

-- Functions that servers call. Every install creates them again. They run with the privileges of the role that
-- installed them, since the role of a server may not write.

-- Deletes the oldest rows of the journal, at_most so many, and returns how many. It deletes rows that are older than
-- age, and the oldest of those beyond size bytes. NULL sets no bound. One server at a time prunes; a concurrent call
-- returns 0.
--
-- Only the oldest at_most rows are read, so the cost of a call does not depend on the length of the journal. The scan
-- starts at the first row, or (onward) where the previous call ended. The latter skips deleted rows that vacuum has not
-- removed yet.
--
-- Rows that are not visible in the snapshot settled are kept, also if they are old: a transaction may write a row and
-- commit an hour later, and readers must have time to read it after the commit.
--
-- The size is that of the remaining rows. The size of the file is no measure: it does not shrink when rows are deleted.
-- The number of rows is estimated by the difference of their ids. Each row counts with 40 bytes for its tuple header
-- and index entry, and with the output that belongs to it.
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
        SELECT j.ctid, j.id, j.txid, j.at, row_number() OVER (ORDER BY j.txid) AS ordinal,
               pg_column_size(j.*) + 40 + CASE WHEN j.xcom_key = 'stream_server_output' THEN coalesce(
                   (SELECT 150 + octet_length(t.body) FROM stream_server.output t WHERE t.id = j.id), 0) ELSE 0 END
               AS bytes
        FROM stream_server.journal j WHERE j.txid >= start
        ORDER BY j.txid LIMIT at_most
    ), excess AS MATERIALIZED (
        SELECT (SELECT j.id FROM stream_server.journal j WHERE j.txid >= start ORDER BY j.txid DESC LIMIT 1)
               - max(o.id) + count(*) - floor(size / avg(o.bytes)) AS rows
        FROM oldest o
    ), deleted_rows AS (
        DELETE FROM stream_server.journal j USING oldest o, excess e
        WHERE j.ctid = o.ctid
          AND (o.at < clock_timestamp() - age OR o.ordinal <= e.rows)
          AND (settled IS NULL OR pg_visible_in_snapshot(o.txid, settled))
        RETURNING j.id, j.txid, j.xcom_key
    ), deleted_output AS (
        DELETE FROM stream_server.output t USING deleted_rows d WHERE d.xcom_key = 'stream_server_output' AND t.id = d.id
    )
    SELECT count(*), max(txid::text::numeric)::text::xid8 INTO deleted, youngest FROM deleted_rows;
    IF deleted > 0 THEN
        UPDATE stream_server.meta SET pruned_to = greatest(pruned_to, youngest);
    END IF;
    RETURN deleted;
END
$body$;

-- Claims a run for an idempotency key, and returns the run that has the claim, the digest of the request that made it,
-- and whether this call made it. Of concurrent calls, one is first. Each call also deletes up to 10 expired claims.
CREATE OR REPLACE FUNCTION stream_server.claim(wanted bytea, request bytea, run_id text, lifetime interval)
    RETURNS TABLE (claimed_run text, claimed_for bytea, first boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    DELETE FROM stream_server.claims c
    WHERE c.key IN (SELECT o.key FROM stream_server.claims o WHERE o.expires < now() AND o.key <> wanted
                    LIMIT 10 FOR UPDATE SKIP LOCKED);
    -- Another call may release its claim between the INSERT, which finds it, and the SELECT.
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

-- Releases a claim whose run Airflow refused to create.
CREATE OR REPLACE FUNCTION stream_server.release(wanted bytea, run text) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
    DELETE FROM stream_server.claims WHERE key = wanted AND run_id = run
$body$;

-- Registers, for lifetime, that a server (here) has clients that watch some runs, and returns the registered runs. If
-- only_beside_others, registers only runs that another server has registered. Each call also deletes up to 10 expired
-- rows.
CREATE OR REPLACE FUNCTION stream_server.wait(
    dag_ids text[], run_ids text[], here uuid, lifetime interval, only_beside_others boolean
) RETURNS TABLE (waited_dag text, waited_run text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    DELETE FROM stream_server.waiters w
    WHERE (w.dag_id, w.run_id, w.server) IN (
        SELECT o.dag_id, o.run_id, o.server FROM stream_server.waiters o WHERE o.expires < now() AND o.server <> here
        LIMIT 10 FOR UPDATE SKIP LOCKED);
    RETURN QUERY
    INSERT INTO stream_server.waiters AS w
    SELECT DISTINCT k.dag, k.run, here, now() + lifetime
    FROM unnest(dag_ids, run_ids) AS k (dag, run)
    WHERE NOT only_beside_others OR EXISTS (
        SELECT FROM stream_server.waiters o
        WHERE o.dag_id = k.dag AND o.run_id = k.run AND o.server <> here AND o.expires > now())
    ON CONFLICT ON CONSTRAINT waiters_pkey DO UPDATE SET expires = excluded.expires
    RETURNING w.dag_id, w.run_id;
END
$body$;

-- Unregisters a server (here) for some runs, and returns the runs that other servers have registered.
CREATE OR REPLACE FUNCTION stream_server.wait_no_more(dag_ids text[], run_ids text[], here uuid)
    RETURNS TABLE (waited_dag text, waited_run text)
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
    DELETE FROM stream_server.waiters w USING unnest(dag_ids, run_ids) AS k (dag, run)
    WHERE w.dag_id = k.dag AND w.run_id = k.run AND w.server = here;

    SELECT DISTINCT o.dag_id, o.run_id
    FROM stream_server.waiters o JOIN unnest(dag_ids, run_ids) AS k (dag, run) ON o.dag_id = k.dag AND o.run_id = k.run
    WHERE o.server <> here AND o.expires > now()
$body$;

-- Stores a ticket, and returns when it expires, or NULL if its holder already has the maximum (most). Each call also
-- deletes up to 100 expired tickets.
CREATE OR REPLACE FUNCTION stream_server.keep_ticket(
    ticket bytea, of_holder bytea, for_paths text[], sealed bytea, lifetime interval, most integer
) RETURNS timestamptz
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    until timestamptz := clock_timestamp() + lifetime;
BEGIN
    DELETE FROM stream_server.tickets t
    WHERE t.digest IN (SELECT o.digest FROM stream_server.tickets o WHERE o.expires < clock_timestamp()
                       LIMIT 100 FOR UPDATE SKIP LOCKED);
    IF (SELECT count(*) FROM stream_server.tickets t WHERE t.holder = of_holder AND t.expires > clock_timestamp()) >= most
    THEN
        RETURN NULL;
    END IF;
    INSERT INTO stream_server.tickets (digest, holder, paths, credential, expires)
    VALUES (ticket, of_holder, for_paths, sealed, until);
    RETURN until;
END
$body$;

-- Deletes a ticket, and returns its paths, its sealed credential and whether it was still valid. Of concurrent calls
-- with the same ticket, one gets a row.
CREATE OR REPLACE FUNCTION stream_server.redeem_ticket(ticket bytea)
    RETURNS TABLE (for_paths text[], sealed bytea, good boolean)
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
    DELETE FROM stream_server.tickets t WHERE t.digest = ticket
    RETURNING t.paths, t.credential, t.expires > clock_timestamp()
$body$;

-- Returns the identifier that initdb gave to this cluster, or NULL where PostgreSQL does not reveal it (Aurora). A
-- standby has that of its primary; a cluster made by pg_upgrade has a new one.
CREATE OR REPLACE FUNCTION stream_server.cluster() RETURNS bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN (SELECT system_identifier FROM pg_control_system());
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$body$;

-- Returns why the transaction ids of the journal are not those of this cluster, or NULL if they are. Ids of another
-- cluster can't be compared with those of this one: old rows would be sent as new ones, and never be pruned.
--
-- cluster: the journal is from another cluster, by a dump, pg_upgrade or logical replication.
-- future: the journal has ids that this cluster has not assigned yet. The only sign if PostgreSQL does not reveal the
--   identifier and the table has the same oid by chance.
-- subscription: another cluster writes to the journal, by logical replication.
CREATE OR REPLACE FUNCTION stream_server.foreign_reason() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
    SELECT CASE
        WHEN EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid IN
                     ('stream_server.journal'::regclass, 'stream_server.meta'::regclass)) THEN 'subscription'
        WHEN m.system_identifier <> stream_server.cluster() OR m.journal_oid <> 'stream_server.journal'::regclass
            THEN 'cluster'
        WHEN greatest(m.pruned_to, (SELECT j.txid FROM stream_server.journal j ORDER BY j.txid DESC LIMIT 1))
             >= pg_snapshot_xmax(pg_current_snapshot()) THEN 'future'
        END
    FROM stream_server.meta m
$body$;

-- Starts a new history if the transaction ids of the journal are not those of this cluster: empties the journal, and
-- gives it a new epoch. Returns whether it did. While a subscription writes to the journal, it only notes that the
-- journal is foreign, also for the time after the subscription.
--
-- TRUNCATE waits for transactions that have written to the journal, and Airflow's wait behind it: callers set
-- lock_timeout.
CREATE OR REPLACE FUNCTION stream_server.adopt() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    reason text;
BEGIN
    -- One server at a time. Another one that waits here finds nothing to do.
    PERFORM pg_advisory_xact_lock(hashtext('stream_server adopt'));
    reason := stream_server.foreign_reason();
    IF reason = 'subscription' THEN
        UPDATE stream_server.meta SET journal_oid = 0 WHERE journal_oid IS DISTINCT FROM 0;
        RETURN false;
    END IF;
    IF reason IS NULL THEN
        UPDATE stream_server.meta
        SET system_identifier = stream_server.cluster(), journal_oid = 'stream_server.journal'::regclass
        WHERE journal_oid IS NULL;
        RETURN false;
    END IF;
    TRUNCATE stream_server.journal, stream_server.output;
    UPDATE stream_server.meta
    SET epoch = DEFAULT, pruned_to = NULL, system_identifier = stream_server.cluster(),
        journal_oid = 'stream_server.journal'::regclass;
    RETURN true;
END
$body$;

-- The end of the install script.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA stream_server FROM PUBLIC;

-- The journal may be that of a restored dump.
SELECT stream_server.adopt();

SELECT stream_server.put_back(also_disabled => true);

-- Triggers that were disabled stay disabled.
SELECT stream_server.switch_off() FROM stream_server.meta WHERE NOT enabled;

-- Without a replica identity, a publication FOR ALL TABLES makes each DELETE fail, and the journal grows. Below
-- logical replication it costs nothing. A trigger of Airflow's that waits for this lock gives up after 100 ms.
DO $body$
DECLARE
    lock_timeout text := current_setting('lock_timeout');
BEGIN
    IF (SELECT relreplident <> 'f' FROM pg_class WHERE oid = 'stream_server.journal'::regclass) THEN
        PERFORM set_config('lock_timeout', '80ms', true);
        ALTER TABLE stream_server.journal REPLICA IDENTITY FULL;
        PERFORM set_config('lock_timeout', lock_timeout, true);
    END IF;
END
$body$;
