"""Several processes that serve on one port: one follows the journal, and tells the others what it reads."""
