"""The application for other ASGI servers: `uvicorn stream_server.app:app`."""

from __future__ import annotations

from starlette.applications import Starlette

from stream_server.server.app import create_app
from stream_server.settings import Settings


def __getattr__(name: str) -> Starlette:
    """Return `app`, configured by environment variables, for `uvicorn stream_server.app:app`.

    Raises:
        SettingsError: A setting is missing or invalid. The authorization must be chosen, since the application does not
            know to which address the server is bound.
    """
    if name != "app":
        raise AttributeError(name)
    settings = Settings.load()
    settings.check_auth_choice(loopback=False)
    # Another server opens no second port.
    return create_app(settings.model_copy(update={"admin_port": None}), drains=True)
