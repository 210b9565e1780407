"""Options with which tests start Chromium."""

QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
"""Without the last three a browser asks its maker's servers for things at every start."""
