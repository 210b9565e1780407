"""Tickets: what browsers open a stream with that can send no header, `EventSource` and `WebSocket`.

A ticket is 256 random bits. Its digest is kept, and the caller's credential, sealed with a key that only the ticket
gives: who reads the table can neither use a ticket nor open a credential. Pure.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

TICKET_BYTES = 32
NONCE_BYTES = 12
"""Of AES-GCM (NIST SP 800-38D section 8.2)."""

MAX_TICKET_LENGTH = 64
"""Characters; what is longer is none of ours."""


def new_ticket() -> str:
    """Return a ticket, as it stands in a URL."""
    return secrets.token_urlsafe(TICKET_BYTES)


def ticket_digest(ticket: str) -> bytes:
    """Return what a ticket is found by; it can't be got back from that."""
    return hashlib.sha256(b"stream_server ticket\0" + ticket.encode()).digest()


def holder_digest(credential: Mapping[str, str]) -> bytes:
    """Return what a caller's tickets are counted by."""
    return hashlib.sha256(b"stream_server holder\0" + msgspec.json.encode(dict(credential))).digest()


def seal_credential(ticket: str, credential: Mapping[str, str], paths: Sequence[str]) -> bytes:
    """Encrypt a caller's headers, so that only the ticket opens them, and only for these paths."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(_derive_key(ticket)).encrypt(
        nonce, msgspec.json.encode(dict(credential)), _associated_data(paths)
    )


def unseal_credential(ticket: str, sealed: bytes, paths: Sequence[str]) -> dict[str, str] | None:
    """Return the headers that were sealed; `None` where somebody has changed them, or the paths."""
    try:
        opened = AESGCM(_derive_key(ticket)).decrypt(
            sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _associated_data(paths)
        )
    except InvalidTag:
        return None
    return msgspec.json.decode(opened, type=dict[str, str])


def _derive_key(ticket: str) -> bytes:
    """Derive a key (RFC 5869). The ticket has its full strength, so that no salt is needed (section 3.1)."""
    return HKDF(SHA256(), length=32, salt=None, info=b"stream_server ticket credential").derive(ticket.encode())


def _associated_data(paths: Sequence[str]) -> bytes:
    return msgspec.json.encode(list(paths))
