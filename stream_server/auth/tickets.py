"""Tickets: how browsers open a stream with `EventSource` and `WebSocket`, which can't send headers. Pure.

A ticket is 256 random bits. The server keeps its digest, and the caller's credential encrypted with a key that is
derived from the ticket: the table alone is not enough to use a ticket or to read a credential.
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
"""Characters. A longer text is no ticket."""


def new_ticket() -> str:
    """Return a new ticket, in the form that URLs have."""
    return secrets.token_urlsafe(TICKET_BYTES)


def ticket_digest(ticket: str) -> bytes:
    """Return the digest by which a ticket is found in the table."""
    return hashlib.sha256(b"stream_server ticket\0" + ticket.encode()).digest()


def holder_digest(credential: Mapping[str, str]) -> bytes:
    """Return the digest by which the unused tickets of a caller are counted, the same in all processes."""
    return hashlib.sha256(b"stream_server holder\0" + msgspec.json.encode(dict(credential))).digest()


def seal_credential(ticket: str, credential: Mapping[str, str], paths: Sequence[str]) -> bytes:
    """Encrypt a caller's headers, so that only the ticket decrypts them, and only for these paths."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    plaintext = msgspec.json.encode(dict(credential))
    return nonce + AESGCM(_derive_key(ticket)).encrypt(nonce, plaintext, _associated_data(paths))


def unseal_credential(ticket: str, sealed: bytes, paths: Sequence[str]) -> dict[str, str] | None:
    """Return the headers that were sealed; `None` if they or the paths were changed."""
    nonce, ciphertext = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        plaintext = AESGCM(_derive_key(ticket)).decrypt(nonce, ciphertext, _associated_data(paths))
    except InvalidTag:
        return None
    return msgspec.json.decode(plaintext, type=dict[str, str])


def _derive_key(ticket: str) -> bytes:
    """Derive a key by HKDF (RFC 5869). A ticket has full entropy, so that no salt is needed (section 3.1)."""
    return HKDF(SHA256(), length=32, salt=None, info=b"stream_server ticket credential").derive(ticket.encode())


def _associated_data(paths: Sequence[str]) -> bytes:
    return msgspec.json.encode(list(paths))
