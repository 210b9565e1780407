EXCEPTION WHEN OTHERS THEN
    PERFORM pg_catalog.set_config('stream_server.given_up', 'on', true);
    RAISE LOG 'stream_server could not record a transition: %', SQLERRM;
    BEGIN
        PERFORM pg_catalog.nextval('stream_server.losses');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
