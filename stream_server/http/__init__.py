"""The HTTP API.

`endpoints/` has one file for each URL, `delivery/` writes frames to connections, `docs/` describes the API; the files
beside them read requests. Imports every lower layer, never `server`. Start with `routes.py`.
"""
