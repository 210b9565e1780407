"""The journal in PostgreSQL: installing it, reading it, and hearing that it has grown."""
