from __future__ import annotations

import re

import pytest

from stream_server.auth.tickets import (
    MAX_TICKET_LENGTH,
    holder_digest,
    new_ticket,
    seal_credential,
    ticket_digest,
    unseal_credential,
)

CREDENTIAL = {"authorization": "Bearer the-secret-of-ada"}
PATHS = ["/api/v2/stream"]


def test_a_ticket_has_256_random_bits_and_needs_no_quoting() -> None:
    tickets = {new_ticket() for _ in range(1000)}
    assert len(tickets) == 1000
    assert all(re.fullmatch(r"[\w-]{43}", ticket) for ticket in tickets)
    assert MAX_TICKET_LENGTH >= 43


def test_only_the_ticket_unseals_a_credential() -> None:
    ticket = new_ticket()
    sealed = seal_credential(ticket, CREDENTIAL, PATHS)
    assert unseal_credential(ticket, sealed, PATHS) == CREDENTIAL
    assert unseal_credential(new_ticket(), sealed, PATHS) is None
    assert b"the-secret" not in sealed


def test_a_credential_is_sealed_for_some_paths_only() -> None:
    ticket = new_ticket()
    assert (
        unseal_credential(ticket, seal_credential(ticket, CREDENTIAL, PATHS), [*PATHS, "/api/v2/dags/d/stream"]) is None
    )


@pytest.mark.parametrize("position", [0, 11, 12, -1])
def test_a_changed_credential_is_not_unsealed(position: int) -> None:
    ticket = new_ticket()
    sealed = bytearray(seal_credential(ticket, CREDENTIAL, PATHS))
    sealed[position] ^= 1
    assert unseal_credential(ticket, bytes(sealed), PATHS) is None


def test_the_same_credential_is_never_sealed_alike() -> None:
    ticket = new_ticket()
    assert seal_credential(ticket, CREDENTIAL, PATHS) != seal_credential(ticket, CREDENTIAL, PATHS)


def test_digests_of_tickets_and_holders_differ() -> None:
    assert ticket_digest("a") == ticket_digest("a") != ticket_digest("b")
    assert holder_digest(CREDENTIAL) == holder_digest(dict(CREDENTIAL)) != holder_digest({})
