#!/bin/sh
# Watch a run with nothing but curl:  examples/watch.sh DAG_ID RUN_ID [SERVER]
exec curl --no-buffer --silent --show-error --fail-with-body \
  "${3:-http://127.0.0.1:8090}/api/v2/dags/$1/dagRuns/$2/stream"
