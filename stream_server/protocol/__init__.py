"""The messages that clients and the server exchange.

Frames, JSON bodies, resume cursors, close codes, and their JSON Schema. Pure data, no I/O. Imports `errors`. Start with
`frames.py`.
"""
