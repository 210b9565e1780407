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

-- The end of the install script.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA stream_server FROM PUBLIC;

SELECT stream_server.put_back(also_disabled => true);

-- Triggers that were disabled stay disabled.
SELECT stream_server.switch_off() FROM stream_server.meta WHERE NOT enabled;
