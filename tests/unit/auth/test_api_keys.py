from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from stream_server.auth.api_keys import ApiKeys
from stream_server.auth.authorizer import Caller
from stream_server.errors import AirflowUrlMissing, SettingsError

KEY = "a-key"


async def test_a_password_is_never_used_as_a_token(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    account = {
        "sha256": hashlib.sha256(KEY.encode()).hexdigest(),
        "username": "ada",
        "file": str(tmp_path / "password"),
    }
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [account]}))
    keys = ApiKeys(str(tmp_path / "keys.json"), None)
    with pytest.raises(AirflowUrlMissing):
        await keys.resolve(Caller.from_token(KEY))


def test_a_file_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(b'{"keys":[{"sha256":"\xff"}]}')
    with pytest.raises(SettingsError, match="not valid"):
        ApiKeys(str(tmp_path / "keys.json"), None)
