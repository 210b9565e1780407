"""The journal: committed changes of Airflow's task instances, runs and XComs, in PostgreSQL.

Installs, reads, follows and prunes it, and has the tables beside it. All SQL is in `sql/`. May import `domain`,
`protocol`, `urls` and `errors`. Start with `tail.py` and the comment on positions in `sql/queries.sql`.

Writing. Triggers on Airflow's tables insert one row for each change, inside Airflow's transaction
(`sql/functions.sql`). A trigger never fails or blocks that transaction: if it can't write, it counts a dropped write in
the sequence `losses`.

Positions. A position is a PostgreSQL snapshot with the epoch of the journal. It covers the transactions that are
visible in the snapshot. The order of ids is not the order of commits, so no single number can be a position.

1. The rows after a position are those with `txid >= xmax OR txid = ANY (xip)`: each committed row is read once,
   whatever the order of commits.
2. A position never covers a transaction that is younger than the newest row (`reader.limit_to_newest_row`). After a
   crash, PostgreSQL may assign the ids of transactions without rows again.
3. The epoch, and one row of the youngest covered transaction, identify the history. If the journal has another epoch,
   or lacks that row and did not prune it, the position is of another history: clients resync, they never guess.
4. A row is pruned only if it was visible one round of pruning earlier. A reader that still misses pruned rows resyncs.
5. On a read replica the snapshot comes from the states of the transactions (`replica_snapshot.py`), read before the
   rows.

6. Transaction ids are those of one cluster. The journal has the identity of its cluster, and gets a new epoch in
   another one (`origin.py`).

Only the tail moves the position of a process: after a read, to the position of the batch, and if the journal has
another history, to its end. `RunStore` reads states and histories at positions of its own. The hub joins both: it drops
the transitions of a batch that the state of a run covers already.

A batch that fails. The position moves before the batch is passed on, so no batch is passed on twice. A lost connection
during the read leaves the position, and the next connection reads the same rows. A row that can't be decoded is
skipped, counted, and causes a resync. An exception of the sink ends the tail and, through `server.journal_service`, the
process: to continue would leave clients incomplete without an error.

Dropped writes. Every read compares the counter (`gaps.py`). A change causes two resyncs: one at once, and one when all
transactions of that moment have ended, because the incomplete transaction may commit later.

The notify protocol. NOTIFY serialises commits, so a transaction notifies only if a tail is idle. Two advisory locks,
both named from the side of their holder, decide:

* idle-consumer: an idle tail holds it (shared). A trigger tries it (exclusive) to find out whether any tail is idle.
* unnotified-writer: a transaction that does not notify holds it (shared) until its end. A tail that becomes idle tries
  it (exclusive) until it is free, reads once more, and only then waits for a notification.

A notification has no data and may be lost: a tail polls too. Through a transaction pooler, and on a replica, it only
polls.

Tasks. This package starts no tasks. `Tail.run`, `DatabaseGauges.run` and `prune_forever` run until they are cancelled;
`server.journal_service` runs one of each per host, and cancels them. A tail has two connections: one reads, one
listens.
"""
