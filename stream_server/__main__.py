"""`python -m stream_server`."""

from stream_server.cli import main

if __name__ == "__main__":
    main()
