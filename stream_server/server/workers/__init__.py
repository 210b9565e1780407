"""Several processes that serve on one port: one follows the journal, and sends the others what it reads."""
