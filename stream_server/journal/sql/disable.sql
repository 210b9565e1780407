-- Disables the triggers.

SELECT stream_server.switch_off();

-- Servers read this sequence all the time. When it has changed, they check the triggers at once, and again when all
-- transactions of that time have ended. The notification wakes idle servers; in a full queue it would fail the commit.
SELECT nextval('stream_server.losses');
SELECT pg_notify('stream_server', '') WHERE pg_notification_queue_usage() < 0.5;
