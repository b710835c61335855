"""Issued keys: their shape, their checksum, and how little one part of them says of another."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import data
from proxy.core import team_key
from proxy.core.redact import Redactor
from proxy.core.secret import Secret

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
random_bytes = st.binary(min_size=32, max_size=32)


def key_of(drawn: bytes) -> str:
    return team_key.mint(lambda count: drawn[:count]).reveal()


def number_of(text: str) -> int:
    number = 0
    for character in text:
        number = number * 62 + CHARACTERS.index(character)
    return number


@given(random_bytes)
def test_a_key_holds_all_its_random_bits_and_the_checksum_of_what_precedes_it(drawn: bytes) -> None:
    key = key_of(drawn)
    assert re.fullmatch("sk-mp-[0-9A-Za-z]{49}", key)
    assert number_of(key[6:49]).to_bytes(32) == drawn
    assert number_of(key[49:]) == zlib.crc32(key[:49].encode())
    assert team_key.is_whole(key.encode())


@pytest.mark.parametrize("drawn", [bytes(32), b"\xff" * 32])
def test_the_least_and_the_greatest_are_as_long_as_any(drawn: bytes) -> None:
    assert len(key_of(drawn)) == 55
    assert team_key.is_whole(key_of(drawn).encode())


@given(random_bytes, st.integers(0, 54), st.integers(0, 255))
def test_any_other_character_in_any_one_place_shows(drawn: bytes, at: int, other: int) -> None:
    key = key_of(drawn).encode()
    changed = key[:at] + bytes([other]) + key[at + 1 :]
    assert team_key.is_whole(changed) == (changed == key)


def test_every_character_in_every_place_of_one_key_shows() -> None:
    key = key_of(bytes(range(32))).encode()
    changed = [key[:at] + bytes([other]) + key[at + 1 :] for at in range(len(key)) for other in range(256)]
    assert [one for one in changed if team_key.is_whole(one)] == [key] * len(key)


@given(random_bytes, st.integers(0, 53))
def test_two_neighbours_that_changed_places_show(drawn: bytes, at: int) -> None:
    key = key_of(drawn).encode()
    changed = key[:at] + key[at + 1 : at + 2] + key[at : at + 1] + key[at + 2 :]
    assert team_key.is_whole(changed) == (changed == key)


@given(random_bytes, st.integers(0, 54))
def test_a_part_of_a_key_or_more_than_one_is_none(drawn: bytes, length: int) -> None:
    key = key_of(drawn).encode()
    for other in (key[:length], key[length + 1 :], key + key[:1], key + b"\n", b" " + key):
        assert not team_key.is_whole(other)


@given(st.binary(max_size=80))
def test_what_is_none_is_none(text: bytes) -> None:
    assert not team_key.is_whole(text)
    assert not team_key.is_whole(b"sk-mp-" + text)


def test_no_two_are_alike_and_every_character_is_as_likely() -> None:
    keys = [team_key.mint().reveal() for _ in range(2000)]
    assert len(set(keys)) == len(keys)
    seen = Counter("".join(key[7:49] for key in keys))  # the first of the 43 stands for less than six bits
    expected = 2000 * 42 / 62
    spread = sum((seen[character] - expected) ** 2 / expected for character in CHARACTERS)
    assert spread < 61 + 8 * math.sqrt(2 * 61)  # chi-square, 61 degrees of freedom: 8 sigma is no accident


def test_an_id_says_nothing_of_its_key_and_may_be_seen() -> None:
    drawn = []

    def randomness(count: int) -> bytes:
        drawn.append(count)
        return bytes(range(count))

    assert team_key.new_id(randomness) == "key_aaaqeaye"
    assert drawn == [5]  # of its own, and none of the 32 of a key
    ids = {team_key.new_id() for _ in range(1000)}
    assert len(ids) == 1000
    redact = Redactor(data.read("redaction.yaml"))
    for key_id in ids:
        assert re.fullmatch("key_[a-z2-7]{8}", key_id)
        assert redact.text(f"key: {key_id}, key_id={key_id}") == f"key: {key_id}, key_id={key_id}"


@given(random_bytes)
def test_redaction_finds_every_key_without_knowing_it(drawn: bytes) -> None:
    """A key that has no digit among its random characters has one in its checksum, which begins with 0 to 4."""
    key = key_of(drawn)
    redact = _redactor()
    assert key[49] in "01234"
    for text in (key, f"key {key}.", f'{{"k":"{key}"}}', f"?k={key}&x=1", f"a\\n{key}\\n"):
        assert key not in redact.text(text)


def test_redaction_finds_a_key_of_letters() -> None:
    letters = number_of("z" * 42).to_bytes(32)
    assert key_of(letters)[7:49] == "z" * 42
    assert _redactor().text(key_of(letters)[:6] + "z" * 43 + key_of(letters)[49:]) == "[redacted:api-key]"


def _redactor() -> Redactor:
    return Redactor(data.read("redaction.yaml"))


@given(random_bytes, st.text(min_size=1), st.text(min_size=1))
def test_what_is_kept_depends_on_the_key_and_on_the_pepper(drawn: bytes, one: str, other: str) -> None:
    key = key_of(drawn).encode()
    kept = team_key.digest(key, Secret(one))
    assert len(kept) == 32
    assert kept == team_key.digest(key, Secret(one))
    assert team_key.digest(key[:-1], Secret(one)) != kept
    assert (team_key.digest(key, Secret(other)) == kept) == (one == other)


def test_it_is_hmac_sha256() -> None:
    """RFC 4231, test case 2."""
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert team_key.digest(b"what do ya want for nothing?", Secret("Jefe")).hex() == expected


def test_a_new_key_is_not_printed_by_accident() -> None:
    key = team_key.mint()
    assert f"{key} {key!r} {key!s}" == "*** *** ***"
