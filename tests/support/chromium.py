"""Options with which tests start Chromium."""

QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
"""Without the last three, a browser sends requests to its vendor's servers at every start."""
