-- Enables the triggers. The install script, which runs after this one, creates their functions again.

-- Changes since the triggers were disabled are not in the journal, so readers must resync.
SELECT nextval('stream_server.losses') FROM stream_server.meta WHERE NOT enabled;
UPDATE stream_server.meta SET enabled = true;

SELECT pg_notify('stream_server', '') WHERE pg_notification_queue_usage() < 0.5;
