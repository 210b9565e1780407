-- Has the triggers switched on by what is run after it: the install script, which makes their functions anew.

-- What happened meanwhile is not in the journal.
SELECT nextval('stream_server.losses') FROM stream_server.meta WHERE NOT enabled;
UPDATE stream_server.meta SET enabled = true;

