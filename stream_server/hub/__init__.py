"""Subscriptions: which client watches which run, bounded queues, fan-out.

Never touches a socket or the database; `hub.py` gets both as protocols. Imports `domain` and `protocol`. Start with
`hub.py`.
"""
