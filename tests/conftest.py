"""Fixtures of every tier."""

from __future__ import annotations

pytest_plugins = ["support.asking", "support.fixtures", "support.stack"]
