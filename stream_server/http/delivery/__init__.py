"""Writing frames to connections: framing, write scheduling, heartbeats, back-pressure."""
