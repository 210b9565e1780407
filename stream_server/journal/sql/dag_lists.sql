-- Queries of lists of DAGs. {airflow} is the schema of Airflow's tables.

-- tagged_dags --
-- The DAGs that have a tag ($1), without stale ones.
SELECT d.dag_id, d.description, d.is_paused
FROM {airflow}.dag_tag AS t
JOIN {airflow}.dag AS d ON d.dag_id = t.dag_id
WHERE t.name = $1 AND NOT d.is_stale
ORDER BY d.dag_id

-- tool_dags --
-- Of some DAGs ($2) those that have a tag ($1), without stale ones, with what describes them as tools. The newest version
-- is serialised as JSON, or compressed.
SELECT d.dag_id, d.dag_display_name AS title, d.description, s.data #>> '{dag,doc_md}' AS documentation,
       (SELECT array_agg(o.name) FROM {airflow}.dag_tag AS o WHERE o.dag_id = d.dag_id) AS tags,
       (s.data #> '{dag,params}')::text AS params, s.data_compressed
FROM {airflow}.dag_tag AS t
JOIN {airflow}.dag AS d ON d.dag_id = t.dag_id
LEFT JOIN LATERAL (
    SELECT data, data_compressed FROM {airflow}.serialized_dag
    WHERE dag_id = d.dag_id ORDER BY created_at DESC LIMIT 1
) AS s ON true
WHERE t.name = $1 AND NOT d.is_stale AND d.dag_id = ANY ($2)
ORDER BY d.dag_id
