-- The queries of a tail on its listening connection. `stream_server.ring()` in functions.sql is the other side of the
-- protocol, and describes the two locks. Each block starts with its name. None uses an object of our schema.

-- probe --
-- Sends a notification to ourselves ($1 channel, $2 token), and returns whether the triggers send notifications at all.
SELECT pg_notify($1, $2), coalesce(current_setting('stream_server.doorbell', true), '') <> 'off' AS are_triggers_notifying

-- go_idle --
-- Takes the idle-consumer lock: from now on, transactions notify. False if a transaction is trying the lock at this
-- moment.
SELECT pg_try_advisory_lock_shared({idle_consumers})

-- wake_up --
-- Releases the idle-consumer lock: this tail needs no notifications.
SELECT pg_advisory_unlock_shared({idle_consumers})

-- have_unnotified_writers_ended --
-- Whether all transactions that did not notify have ended. CASE guarantees the order of the two calls.
SELECT CASE WHEN pg_try_advisory_lock({unnotified_writers}) THEN pg_advisory_unlock({unnotified_writers}) ELSE false END
