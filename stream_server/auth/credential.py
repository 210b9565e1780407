"""A digest that stands for a credential in this process, so that no cache or counter holds the credential itself."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

DIGEST_BYTES = 16


def credential_digest(credential: Mapping[str, str], key: bytes) -> bytes:
    """Return the same digest for the same headers, and for no others.

    Args:
        credential: The headers of a caller.
        key: Random and known to this process only, so that a digest in a memory dump can't be matched with a guess.
    """
    digest = blake2b(digest_size=DIGEST_BYTES, key=key)
    for name, value in sorted(credential.items()):
        # With lengths, so that two different sets of headers can't have the same concatenation.
        digest.update(f"{len(name)}:{name}{len(value)}:{value}".encode(errors="surrogateescape"))
    return digest.digest()
