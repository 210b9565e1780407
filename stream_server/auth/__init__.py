"""What a caller may see, and how much of it.

Authorizers, permission cache, revalidation of live streams, tickets, rate limits. Imports `hub` (to close streams),
`domain` and `protocol`. Start with `authorizer.py`.
"""
