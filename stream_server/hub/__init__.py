"""Subscriptions: which client watches which run, bounded queues, fan-out.

Nothing here touches a socket or the database; `hub.py` gets both as protocols (`RunSource`, `HubObserver`). Start with
`hub.py`. It imports `domain` and `protocol`.

Two kinds of streams:

- A run (`run_feed.py`). Each watched run is one `RunFeed`: its state is read once, kept current by the tail, and shared
  by all its subscriptions. Those with the same `WatchOptions` form a `SubscriberGroup`, which has one `OutcomeTracker`.
  `WatchedRuns` counts references, and drops a feed with its last subscription.
- The firehose (`firehose.py`). It has no state of runs: it sends what the journal has, filtered. Subscriptions with the
  same filter and the same permissions form a group.

Position. The hub has one position, how far the journal has been read. Only the tail moves it: by `start`, `dispatch`,
`resync` and `reconnect`. A feed that was loaded ahead of the tail has its own position until the tail catches up. The
last frame of a batch carries a position; it covers every earlier frame of that stream, so a client that resumes there
misses nothing and gets nothing twice. A new subscription gets a snapshot, then each transition that the snapshot does
not include.

Resuming. A client with a token gets the rows between its token and the hub's position from the journal
(`domain/replay.py`) in front of what was queued meanwhile. If something that it has been sent was retracted, if the
journal is another one, or if rows have been pruned, it gets a `reset` and a snapshot instead. The token has the kind
of outcome the client knows, and its group must know the same, or else a retraction would not reach the client. So while
a group still reads the values of a result, clients that know the result form a group of their own (`GroupKey`).

Failed batches. An exception while a batch is applied to one run, or to one group of the firehose, disconnects those
subscriptions with `CloseCode.INTERNAL`, and discards the feed; all others get the batch. The position moves all the
same: clients reconnect with their token and get the rows from the journal. If rows may be missing, the tail calls
`resync`: each feed is read again, and its clients get a `reset` and a snapshot.

Slow clients. What is queued for one client is bounded in bytes. Beyond the bound the queue is dropped and the client is
disconnected with `CloseCode.SLOW`; it resumes after the last frame that it has received. A client with an empty queue
is never slow, however large a frame is.

Lifetime of a subscription. `Hub.subscribe` and `Hub.subscribe_firehose` return it, `Subscription.close` ends it:
synchronously, once, and in reverse order of acquisition (rate-limit slot, permission, membership in the hub). The code
that subscribes must close. `Subscription.disconnect` does something else: it queues a `close` frame with the reason why
the connection ends; the connection then closes the subscription.

Tasks. Everything runs in one event loop, and whatever must not be interrupted is not async: a dispatch runs to its end
before a client can subscribe. The exception is the prediction of a large run, which is updated in steps: batches of
that run wait meanwhile, and so do clients that join. The frames of a long history are made in a thread (`resuming.py`).
There is no task for a subscription. The only tasks are those of `WatchedRuns`: at most one load, one fetch of return
values and one update for each watched run. They end by themselves, and are cancelled when the last subscription of the
run is closed or when the hub is closed. A read that PostgreSQL does not answer is repeated until it succeeds; a read
that was started before a resync is ignored.
"""
