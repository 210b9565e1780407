from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from stream_server.auth.credential import credential_digest

KEY = b"key of the tests"
headers = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)


@given(headers)
def test_the_digest_depends_on_the_headers_and_not_on_their_order(credential: dict[str, str]) -> None:
    reordered = dict(reversed(credential.items()))
    assert credential_digest(credential, KEY) == credential_digest(reordered, KEY)


@given(headers, headers)
def test_different_headers_have_different_digests(one: dict[str, str], other: dict[str, str]) -> None:
    assume(one != other)
    assert credential_digest(one, KEY) != credential_digest(other, KEY)


def test_headers_with_the_same_concatenation_have_different_digests() -> None:
    assert credential_digest({"a": "bc"}, KEY) != credential_digest({"ab": "c"}, KEY)
    assert credential_digest({"cookie": "\udce9"}, KEY), "octets that are no text"


def test_another_key_gives_another_digest() -> None:
    assert credential_digest({"a": "b"}, KEY) != credential_digest({"a": "b"}, b"another")
