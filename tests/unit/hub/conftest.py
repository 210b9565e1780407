from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from support.loaded_hub import LoadedHub


@pytest.fixture
async def loaded() -> AsyncIterator[LoadedHub]:
    loaded = LoadedHub()
    yield loaded
    await loaded.hub.close()
