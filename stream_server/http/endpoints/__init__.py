"""Endpoints: one file for each URL, or for a few that belong together."""
