"""Checksums in state files: what was written is read, what was altered is not."""

import json

import pytest

from agentd.seal import BrokenSealError, seal, seal_json, unseal, unseal_json


@pytest.mark.parametrize("content", [b"", b"key\n", b"no end", b"# sha256 of nothing\n"])
def test_what_was_sealed_is_read(content: bytes) -> None:
    assert unseal(seal(content)) == content


@pytest.mark.parametrize("content", [b"", b"AAAA=\n", b"-----BEGIN X-----\n"])
def test_a_file_of_a_version_without_seals_is_read_as_it_is(content: bytes) -> None:
    assert unseal(content) == content


def test_an_altered_content_or_seal_is_refused() -> None:
    sealed = bytearray(seal(b"AAAA=\n"))
    for place in (0, len(sealed) - 2):
        altered = bytearray(sealed)
        altered[place] = ord("B") if place == 0 else ord("0") + (altered[place] == ord("0"))
        with pytest.raises(BrokenSealError):
            unseal(bytes(altered))


def test_a_sealed_object_is_still_json_with_its_fields() -> None:
    sealed = seal_json(b'{"name": "db-1", "format": 1}')
    assert {key: json.loads(sealed)[key] for key in ("name", "format")} == {"name": "db-1", "format": 1}
    assert json.loads(unseal_json(sealed)) == {"name": "db-1", "format": 1}
    with pytest.raises(BrokenSealError):
        unseal_json(sealed.replace(b"db-1", b"db-2"))
    assert unseal_json(sealed.replace(b" ", b"")) == unseal_json(sealed)


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"name": "db-1"}'])
def test_what_is_no_sealed_object_is_left_to_its_reader(content: bytes) -> None:
    assert unseal_json(content) == content
