-- What servers call, made anew by every install. It does what their role may not do by itself.

-- Deletes the oldest rows, those older than an age and those beyond a size in bytes, at_most so many, and returns how
-- many; one replica does it at a time. Only the oldest are looked at, so that a call costs the same however long the
-- journal is: from the first row on, or from where the call before has ended (onward), which saves walking over all that
-- was deleted and that vacuum could not remove yet.
--
-- What a snapshot (settled) had not seen stays, however old it is: its transaction may have committed only now. What is
-- NULL sets no bound.
--
-- The size is that of the rows left, not of the file, which does not shrink when rows are deleted. They are counted by
-- the difference of their identities; to each come 40 bytes of table and index around it, and what a task has said in it.
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
        SELECT j.ctid, j.id, j.txid, j.at, row_number() OVER (ORDER BY j.txid) AS place,
               pg_column_size(j.*) + 40 + CASE WHEN j.xcom_key = '{output_key}' THEN coalesce(
                   (SELECT 150 + octet_length(t.body) FROM stream_server.output t WHERE t.id = j.id), 0) ELSE 0 END
               AS bytes
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
        RETURNING j.id, j.txid, j.xcom_key
    ), unsaid AS (
        DELETE FROM stream_server.output t USING gone g WHERE g.xcom_key = '{output_key}' AND t.id = g.id
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

-- Notes for a time that a server has clients who watch some runs, and returns those runs. Where only_beside_others, it is
-- noted for those runs only that another server has noted. Some notes whose time is over go at each call.
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

-- Takes back what was noted of some runs, and returns those for which another server has noted it, too.
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

-- Keeps a ticket for a time, and returns when it expires; NULL where its holder has so many already (most). Some tickets
-- whose time is over go at each call.
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

-- Takes a ticket away, and returns what it stands for, and whether it was still good. Of those who come at once with the
-- same one, one gets it.
CREATE OR REPLACE FUNCTION stream_server.redeem_ticket(ticket bytea)
    RETURNS TABLE (for_paths text[], sealed bytea, good boolean)
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
    DELETE FROM stream_server.tickets t WHERE t.digest = ticket
    RETURNING t.paths, t.credential, t.expires > clock_timestamp()
$body$;
