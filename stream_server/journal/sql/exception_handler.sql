EXCEPTION WHEN OTHERS THEN
    PERFORM set_config('stream_server.given_up', 'on', true);
    RAISE LOG 'stream_server could not record a transition: %', SQLERRM;
    BEGIN
        PERFORM nextval('stream_server.losses');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
