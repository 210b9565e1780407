-- Removes everything that the install script created, also if only part of it is left.

SELECT pg_advisory_xact_lock(hashtext('stream_server install'));

DO $body$
DECLARE
    ours record;
BEGIN
    -- Privileges on Airflow's tables that `install --reader` granted: roles with access to our schema have them, and
    -- this role granted them.
    FOR ours IN
        SELECT format('SELECT ON TABLE %s', c.oid::regclass) AS granted, r.rolname
        FROM pg_namespace n
        CROSS JOIN aclexplode(n.nspacl) u
        JOIN pg_roles r ON r.oid = u.grantee AND r.oid <> n.nspowner
        CROSS JOIN (pg_class c CROSS JOIN aclexplode(c.relacl) g)
        WHERE n.nspname = 'stream_server'
            AND c.relname IN ('dag', 'dag_run', 'dag_tag', 'dynamic_region', 'hitl_detail', 'legacy_task_data_owner',
                              'serialized_dag', 'slot_pool', 'task_instance', 'task_instance_history', 'xcom', 'xcom_v1', 'xcom_v2')
            AND c.relkind IN ('r', 'p') AND g.grantee = u.grantee AND g.privilege_type = 'SELECT'
            AND pg_has_role(g.grantor, 'USAGE')
        UNION
        SELECT format('USAGE ON SCHEMA %I', a.nspname), r.rolname
        FROM pg_namespace n
        CROSS JOIN aclexplode(n.nspacl) u
        JOIN pg_roles r ON r.oid = u.grantee AND r.oid <> n.nspowner
        CROSS JOIN (pg_namespace a CROSS JOIN aclexplode(a.nspacl) g)
        WHERE n.nspname = 'stream_server'
            AND a.oid IN (SELECT c.relnamespace FROM pg_class c WHERE c.relname = 'task_instance')
            AND g.grantee = u.grantee AND g.privilege_type = 'USAGE' AND pg_has_role(g.grantor, 'USAGE')
    LOOP
        EXECUTE format('REVOKE %s FROM %I', ours.granted, ours.rolname);
    END LOOP;
    -- Only the owner of a table may drop a trigger on it. Triggers on tables of other roles are dropped with our
    -- schema.
    FOR ours IN
        SELECT t.tgname, t.tgrelid::regclass AS table_name
        FROM pg_trigger t
        JOIN pg_proc p ON p.oid = t.tgfoid
        JOIN pg_namespace n ON n.oid = p.pronamespace
        JOIN pg_class c ON c.oid = t.tgrelid
        WHERE n.nspname = 'stream_server' AND pg_has_role(c.relowner, 'USAGE')
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', ours.tgname, ours.table_name);
    END LOOP;
END
$body$;

DROP SCHEMA IF EXISTS stream_server CASCADE;
