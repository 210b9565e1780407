"""What makes tests start faster, without a change of what they test."""

from __future__ import annotations

import functools
import gc
import os
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx._transports.default

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stream-server-tests"
"""What all checkouts of a user share."""

GARBAGE_THRESHOLDS = (10_000, 20, 20)
"""For `gc.set_threshold`. Python's own are 700, 10, 10."""


def keep_bytecode() -> None:
    """Write compiled modules to a directory of their own where PYTHONDONTWRITEBYTECODE is set.

    Otherwise, each of hundreds of processes compiles all of its modules. Checkouts share the directory, so that a new
    one, or an environment of the matrix, does not compile Airflow again. It has a folder for each folder with modules.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(CACHE / "bytecode")
        sys.dont_write_bytecode = False


def load_no_pydantic_plugins() -> None:
    """Have Pydantic not look for plugins: each process would read the metadata of all packages, in 60 ms."""
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"


def collect_garbage_rarely() -> None:
    """Raise the thresholds of the garbage collector: otherwise, it takes a quarter of the time of imports."""
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def share_tls_contexts() -> None:
    """Have clients of httpx share TLS contexts, also those of `http` URLs: each loads all certificates, in 50 ms."""
    transports: Any = httpx._transports.default  # private; all tests fail if the attribute disappears
    make: Callable[..., ssl.SSLContext] = transports.create_ssl_context

    @functools.cache
    def make_once(verify: Any, cert: Any, trust_env: bool, *_: str | None) -> ssl.SSLContext:
        return make(verify, cert, trust_env)

    def share(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
        # With the variables that it reads.
        return make_once(verify, cert, trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))

    transports.create_ssl_context = share
