EXCEPTION WHEN OTHERS THEN
    PERFORM pg_catalog.set_config('stream_server.given_up', 'on', true);
    RAISE LOG 'stream_server could not record a transition: %', SQLERRM;
    BEGIN
        -- undefined_column, undefined_table, undefined_function, datatype_mismatch: the next row would fail too.
        IF SQLSTATE OPERATOR(pg_catalog.=) ANY (ARRAY['42703', '42P01', '42883', '42804']) THEN
            PERFORM pg_catalog.setval('stream_server.unknown_schema', 1);
        END IF;
        PERFORM pg_catalog.nextval('stream_server.losses');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
