"""The address of the application for other ASGI servers: `uvicorn stream_server.app:app`."""

from __future__ import annotations

from starlette.applications import Starlette

from stream_server.server.app import create_app
from stream_server.settings import Settings


def __getattr__(name: str) -> Starlette:
    """Make `app`, configured by the environment, for `uvicorn stream_server.app:app`.

    Raises:
        SettingsError: A setting is missing or wrong. Since a server of somebody else's choice does not tell us who can
            connect, the authorization must have been chosen.
    """
    if name != "app":
        raise AttributeError(name)
    settings = Settings.load()
    settings.check_auth_choice(loopback=False)
    # It has no second port.
    return create_app(settings.model_copy(update={"admin_port": None}), drains=True)
