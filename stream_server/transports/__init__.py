"""The edges: how frames reach a client."""
