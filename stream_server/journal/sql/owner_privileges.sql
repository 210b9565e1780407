-- The tables of Airflow 3.4 that the trigger functions read and their owner may not. No row if there are none, or if
-- there are no functions. {airflow} is the schema of Airflow's tables, as a literal.
SELECT pg_get_userbyid(p.proowner)::text AS owner, string_agg(c.relname, ', ' ORDER BY c.relname DESC) AS tables
FROM pg_namespace AS a
JOIN pg_class AS c ON c.relnamespace = a.oid AND c.relname IN ('task_instance', 'dynamic_region')
JOIN pg_namespace AS s ON s.nspname = 'stream_server'
JOIN pg_proc AS p ON p.pronamespace = s.oid AND p.proname = 'record_try'
WHERE a.nspname = {airflow} AND NOT has_table_privilege(p.proowner, c.oid, 'SELECT')
    AND EXISTS (SELECT FROM pg_class AS r WHERE r.relnamespace = a.oid AND r.relname = 'dynamic_region')
GROUP BY p.proowner
