from __future__ import annotations

import gc
from hashlib import blake2b

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.entry import MAGIC, SEAL, Entry, Sealer, packed, unpacked

NUMBERS = st.integers(0, 2**63 - 1)
ENTRIES = st.builds(
    Entry,
    created=NUMBERS,
    stream=st.booleans(),
    body=st.binary(max_size=200),
    prompt=NUMBERS,
    completion=NUMBERS,
    cost=st.none() | NUMBERS,
    rewrites=st.lists(st.text(max_size=20), max_size=4).map(tuple),
    cadence=st.binary(max_size=64),
)
KEYS = st.text(max_size=40)
SECRETS = st.binary(min_size=1, max_size=64)

SEALER = Sealer(b"secret")
KEY = "red/0123"
ENTRY = Entry(1_800_000_000_000, True, b"data: {}\n\n", 11, 22, 33, ("drop:user",), packed([0, 4, 90, 6]))
SEALED = SEALER.seal(KEY, ENTRY)


@given(SECRETS, KEYS, ENTRIES)
def test_what_was_sealed_opens_and_is_the_same(secret: bytes, key: str, entry: Entry) -> None:
    sealed = Sealer(secret).seal(key, entry)
    assert sealed.startswith(MAGIC)
    opened = Sealer(secret).open(key, sealed)
    assert opened == entry
    assert opened
    assert [type(value) for value in msgspec.structs.astuple(opened)] == [
        type(value) for value in msgspec.structs.astuple(entry)
    ]


def test_no_flipped_bit_opens() -> None:
    assert SEALER.open(KEY, SEALED) == ENTRY
    for at in range(len(SEALED)):
        for bit in range(8):
            flipped = bytearray(SEALED)
            flipped[at] ^= 1 << bit
            assert SEALER.open(KEY, bytes(flipped)) is None


def test_nothing_that_is_cut_or_longer_opens() -> None:
    for at in range(len(SEALED)):
        assert SEALER.open(KEY, SEALED[:at]) is None
        assert SEALER.open(KEY, SEALED[at + 1 :]) is None
        assert SEALER.open(KEY, SEALED[:at] + b"\0" + SEALED[at:]) is None
    assert SEALER.open(KEY, SEALED + b"\0") is None
    assert SEALER.open(KEY, SEALED + SEALED) is None


@given(ENTRIES, st.data())
def test_no_change_opens(entry: Entry, data: st.DataObject) -> None:
    sealed = SEALER.seal(KEY, entry)
    start = data.draw(st.integers(0, len(sealed)))
    end = data.draw(st.integers(start, len(sealed)))
    changed = sealed[:start] + data.draw(st.binary(max_size=20)) + sealed[end:]
    assert SEALER.open(KEY, changed) == (entry if changed == sealed else None)


@given(KEYS, KEYS, SECRETS, SECRETS, ENTRIES)
def test_nothing_opens_under_another_key_or_secret(
    key: str, other: str, secret: bytes, another: bytes, entry: Entry
) -> None:
    sealed = Sealer(secret).seal(key, entry)
    assert (Sealer(secret).open(other, sealed) is None) is (other != key)
    if secret.ljust(64, b"\0") != another.ljust(64, b"\0"):  # to BLAKE2 they are the same
        assert Sealer(another).open(key, sealed) is None


@given(ENTRIES, ENTRIES)
def test_the_seal_of_one_entry_is_not_that_of_another(one: Entry, other: Entry) -> None:
    head, rest = len(MAGIC) + SEAL, SEALER.seal(KEY, other)
    mixed = SEALER.seal(KEY, one)[:head] + rest[head:]
    assert SEALER.open(KEY, mixed) == (one if one == other else None)


@given(st.binary(max_size=300))
def test_no_other_bytes_open(data: bytes) -> None:
    assert SEALER.open(KEY, data) is None
    assert SEALER.open(KEY, MAGIC + data) is None
    assert SEALER.open(KEY, SEALED[: len(MAGIC) + SEAL] + data) is None


def sealed(packed: bytes) -> bytes:
    """As only we could do it."""
    return MAGIC + SEALER._digest(KEY, packed) + packed


@given(st.binary(max_size=300))
def test_what_we_sealed_and_is_no_entry_does_not_open_either(packed: bytes) -> None:
    opened = SEALER.open(KEY, sealed(packed))
    assert opened is None or SEALER.open(KEY, SEALER.seal(KEY, opened)) == opened


FIELDS = list(msgspec.structs.astuple(ENTRY))


@pytest.mark.parametrize(
    "other",
    [
        [*FIELDS, 1],  # of a later version
        FIELDS[:5],
        [],
        {},
        None,
        [str(FIELDS[0]), *FIELDS[1:]],
        [FIELDS[0], 1, *FIELDS[2:]],
        [*FIELDS[:2], FIELDS[2].decode(), *FIELDS[3:]],
        [*FIELDS[:7], [1.5]],
        [*FIELDS[:6], "drop", ()],
    ],
)
def test_what_another_version_has_kept_does_not_open(other: object) -> None:
    assert SEALER.open(KEY, sealed(msgspec.msgpack.encode(FIELDS))) == ENTRY
    assert SEALER.open(KEY, sealed(msgspec.msgpack.encode(other))) is None


@pytest.mark.parametrize(
    "packed",
    [
        b"\x91" * 100_000,  # deeper than anybody goes
        b"\x98\x01\xc3\xc6\xff\xff\xff\xff",  # bytes, and not as many as it says
        b"\x98\x01\xc3\xc4\x00\x01\x01\xc0\xdd\xff\xff\xff\xff\x90",
        b"\x98\x01\xc3\xc4\x00\x01\x01\xc0\x91\xa1\xff\x90",  # not UTF-8
    ],
)
def test_nothing_that_is_sealed_can_raise(packed: bytes) -> None:
    assert SEALER.open(KEY, sealed(packed)) is None


def test_a_seal_is_for_entries_only() -> None:
    """The same secret may key other digests."""
    packed = SEALED[len(MAGIC) + SEAL :]
    bare = blake2b(KEY.encode() + b"\n" + packed, digest_size=SEAL, key=b"secret").digest()
    assert SEALER.open(KEY, MAGIC + bare + packed) is None


def test_the_size_is_that_of_body_and_cadence() -> None:
    assert ENTRY.size == 10 + 16


def test_entries_are_no_work_for_the_garbage_collector() -> None:
    opened = SEALER.open(KEY, SEALED)
    assert opened
    assert not gc.is_tracked(opened)


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_a_cadence_is_unpacked_as_it_was_packed(numbers: list[int]) -> None:
    assert unpacked(packed(numbers)) == tuple(numbers)
    assert len(packed(numbers)) == 4 * len(numbers)
