-- Grants a role the privileges of `stream-server serve` that it lacks, and no others. The placeholders in braces are
-- the role, as a literal, and rows of kind, schema, name (empty for the schema itself) and privilege.
DO $reader$
DECLARE
    missing record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {reader}) THEN
        RAISE EXCEPTION '%', format('Role %I does not exist; create it first: CREATE ROLE %1$I LOGIN', {reader});
    END IF;
    FOR missing IN
        WITH wanted (kind, schema, name, privilege) AS (VALUES
            {wanted})
        SELECT w.privilege, format('SCHEMA %I', n.nspname) AS object
        FROM wanted w JOIN pg_namespace n ON n.nspname = w.schema
        WHERE w.kind = 'schema' AND NOT has_schema_privilege({reader}, n.oid, w.privilege)
        UNION ALL
        SELECT w.privilege, format('%s %I.%I', w.kind, n.nspname, c.relname)
        FROM wanted w JOIN pg_namespace n ON n.nspname = w.schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
        WHERE CASE w.kind
                  WHEN 'table' THEN NOT has_table_privilege({reader}, c.oid, w.privilege)
                  WHEN 'sequence' THEN NOT has_sequence_privilege({reader}, c.oid, w.privilege)
              END
        UNION ALL
        SELECT w.privilege, format('FUNCTION %s', p.oid::regprocedure)
        FROM wanted w JOIN pg_namespace n ON n.nspname = w.schema
        JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = w.name
        WHERE w.kind = 'function' AND NOT has_function_privilege({reader}, p.oid, w.privilege)
    LOOP
        EXECUTE format('GRANT %s ON %s TO %I', missing.privilege, missing.object, {reader});
    END LOOP;
END
$reader$;
