-- What a tail says on its listening connection; `stream_server.ring()` in functions.sql is the other side. Each block
-- begins with its name. All of them are functions of PostgreSQL itself.

-- hears --
-- Ring our own bell ($1 channel, $2 token), and tell whether Airflow's transactions ring at all.
SELECT pg_notify($1, $2), coalesce(current_setting('stream_server.doorbell', true), '') <> 'off' AS rings

-- lie_down --
-- Have transactions ring from now on; false where another session is just looking whether anybody sleeps.
SELECT pg_try_advisory_lock_shared({sleepers})

-- get_up --
-- Let transactions be silent as far as we are concerned.
SELECT pg_advisory_unlock_shared({sleepers})

-- quiet --
-- Tell whether every silent transaction has ended. CASE sees to it that nothing comes between the two calls.
SELECT CASE WHEN pg_try_advisory_lock({silent}) THEN pg_advisory_unlock({silent}) ELSE false END
