"""The command `stream-server doctor`: checks an installation without changing it."""
