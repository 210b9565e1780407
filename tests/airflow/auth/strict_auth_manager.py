"""Airflow's simple auth manager with permissions that a file denies.

`DENIED_FILE` holds `{"user": ["XCOM", "chat_answer", "RUN:chat_answer"]}`: entities of all DAGs, DAGs, and entities of
one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class StrictAuthManager(SimpleAuthManager):
    def is_authorized_dag(self, *, method, user, access_entity=None, details=None):
        denied = json.loads(Path(os.environ["DENIED_FILE"]).read_text()).get(user.get_name(), ())
        if access_entity is not None and access_entity.name in denied:
            return False
        if details is not None and details.id in denied:
            return False
        if access_entity is not None and details is not None and f"{access_entity.name}:{details.id}" in denied:
            return False
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)
