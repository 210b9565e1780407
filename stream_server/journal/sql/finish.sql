-- The end of the install script.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA stream_server FROM PUBLIC;

-- The journal may be that of a restored dump.
SELECT stream_server.adopt();

SELECT stream_server.put_back(also_disabled => true);

-- Triggers that were disabled stay disabled.
SELECT stream_server.switch_off() FROM stream_server.meta WHERE NOT enabled;
