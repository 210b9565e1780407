"""One running server process.

uvicorn, lifespan, connections, metrics, and `workers/` for several processes behind one port. Imports every layer below
`cli`. Start with `main.py`.
"""
