#!/bin/sh
# Watch a run with curl:  STREAM_SERVER_TOKEN=… examples/watch.sh DAG_ID RUN_ID [SERVER]
# The token goes through a pipe, because process lists show arguments.
printf '%s' "${STREAM_SERVER_TOKEN:+header = \"Authorization: Bearer $STREAM_SERVER_TOKEN\"}" |
  curl --config - --no-buffer --silent --show-error --fail-with-body \
    "${3:-http://127.0.0.1:8090}/api/v2/dags/$1/dagRuns/$2/stream"
