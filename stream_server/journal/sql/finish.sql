-- The end of every install.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA stream_server FROM PUBLIC;

SELECT stream_server.put_back(also_disabled => true);

-- Where the triggers had been switched off, they stay off.
SELECT stream_server.switch_off() FROM stream_server.meta WHERE NOT enabled;
