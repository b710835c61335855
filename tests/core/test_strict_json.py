"""JSON: what a request's body may be, and what is wrong with one that may not be."""

from __future__ import annotations

import json as standard

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core import json, strict_json
from proxy.core.json import Malformed
from tests.fuzz import bodies

LEAVES = st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
NAMES = st.sampled_from(["model", "stream", "", "a", '"', "\\", "é", "😀", "a:1", '","a":'])
SPACES = st.sampled_from(["", "", " ", "\n\t", "\r "])


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Objects whose keys come in every spelling, often more than once, with space wherever it may be."""

    def spaced(text: str) -> str:
        return draw(SPACES) + text + draw(SPACES)

    def spelled(name: str) -> str:
        text = standard.dumps(name, ensure_ascii=draw(st.booleans()))
        return "".join(f"\\u{ord(one):04x}" if one.isalnum() and ord(one) < 128 and draw(st.booleans()) else one
                       for one in text) if '"' not in name and "\\" not in text else text  # fmt: skip

    members = [
        spaced(spelled(draw(NAMES))) + ":" + spaced(standard.dumps(draw(VALUES), ensure_ascii=draw(st.booleans())))
        for _ in range(draw(st.integers(0, 4)))
    ]
    return spaced("{" + (",".join(members) or draw(SPACES)) + "}").encode()


def reason(data: bytes) -> type[Malformed]:
    with pytest.raises(Malformed) as caught:
        strict_json.parse(data)
    with pytest.raises(Malformed) as again:
        strict_json.parse(bytearray(data))
    assert (type(again.value), str(again.value)) == (type(caught.value), str(caught.value))
    return type(caught.value)


# What is one object.


@given(objects())
@example(b'{"a":12,"a":1}')
@example(b'{"a":"\\"a\\":1","a":1}')
@example(b'{ "a" : 1 , "b" : 2 , "a" : 1 }')
@example(b'{"model":1,"mod\\u0065l":2}')
@example(b'{"a": 1,"b": 2,"c": 3,"d":0,"d": 4}')
def test_it_reads_as_another_parser_does(data: bytes) -> None:
    bodies.check(data)


@given(st.binary(max_size=40) | st.text('{}[]",:\\u0dDe1-+.  aN', max_size=40).map(str.encode))
def test_any_bytes_are_read_as_another_parser_does(data: bytes) -> None:
    bodies.check(data)
    bodies.check(b'{"a":' + data + b"}")


@given(objects(), st.data())
def test_a_damaged_object_is_read_as_another_parser_does(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data)))
    bodies.check(data[:at] + draw.draw(st.sampled_from([b"", b'"', b",", b"\\", b"}", b"\xff", b"1"])) + data[at + 1 :])


# What is none.


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"null", b"[]", b'"x"', b"1", b"{", b'{"a": 1}}', b'{"a": 1} {}', b"{'a': 1}", b'{"a": 1,}', b"{,}",
        b"// no\n{}", b'{"a": /**/ 1}', b'{"a": 01}', b'{"a": +1}', b'{"a": .5}', b'{"a": 0x1}', b'{"a": tru',
        b'{"a": "\n"}', b'{"a": "\\x"}', b'{"a": "\\ud83d', b'{a: 1}', b'{"a" 1}', b'{"a": nan}', b'{"a": undefined}',
        b"[" * 65, b'[{"a":1,"a":2}]',
    ],
)  # fmt: skip
def test_what_is_not_one_object(text: bytes) -> None:
    assert reason(text) is Malformed or text == b"[" * 65


@pytest.mark.parametrize(("text", "place"), [(b'{"a": ?}', "byte 6"), (b'{"secret": "abc', "byte 15")])
def test_the_place_is_told_and_nothing_that_stands_there(text: bytes, place: str) -> None:
    with pytest.raises(Malformed, match=place) as caught:
        strict_json.parse(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "number",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400 + ".0", "18446744073709551616",
     "-18446744073709551616", "1" * 5000, "-" + "1" * 5000, "1" * 5000 + ".5"],
)  # fmt: skip
@pytest.mark.parametrize("frame", ['{"a":%s}', '{"a":[{"b":[1, %s]}]}', '{"b":1 , "a": %s }'])
def test_numbers_that_readers_disagree_on(frame: str, number: str) -> None:
    assert reason((frame % number).encode()) is strict_json.OutOfRange


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**64) + 1, 2**53 + 1, 1e308, 5e-324, 0.1234567890123456789012])
def test_numbers_that_they_agree_on(number: float) -> None:
    body = {"a": number, "b": "1" * 30, "1" * 30: 1}
    assert strict_json.parse(standard.dumps(body).encode()) == body


@pytest.mark.parametrize("depth", [65, 66, 500, 900, 1100, 100_000, 1_000_000])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
@pytest.mark.parametrize("closed", [True, False])
def test_what_is_too_deep(depth: int, start: str, end: str, closed: bool) -> None:
    depth //= len(end)
    text = '{"a":' + start * depth + ("1" + end * depth + "}" if closed else "")
    if len(end) * depth + 1 > 64:
        assert reason(text.encode()) is strict_json.TooDeep


def test_the_deepest_that_is_read() -> None:
    for start, end in (("[", "]"), ('{"a":', "}")):
        data = ('{"a":' + start * 63 + "1" + end * 63 + "}").encode()
        assert standard.loads(data) == strict_json.parse(data)


def test_brackets_in_text_are_no_depth() -> None:
    body = {"a": ["[" * 1000 + '\\"{' * 1000] * 70}
    assert strict_json.parse(standard.dumps(body).encode()) == body


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":"\xff"}', b'{"\xff":1}', b'{"a":"\xc0\xaf"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xf4\x90\x80\x80"}',
        b"\xef\xbb\xbf{}", *('{"a":"b"}'.encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32",
        "utf-32-le", "utf-32-be")), "{}".encode("utf-16-le"), "{}".encode("utf-16-be"), b'{}\xff', b"\xff",
        b'{"a":"\xc3',
    ],
)  # fmt: skip
def test_what_is_not_utf_8(text: bytes) -> None:
    assert reason(text) is strict_json.NotUtf8


@pytest.mark.parametrize(
    "half",
    ["\\ud800", "\\udbff", "\\uDC00", "\\ud800x", "\\ud800\\n", "\\ud800\\u0041", "\\ud800\\ud800", "\\udc00\\ud800"],
)
@pytest.mark.parametrize("frame", ['{"%s":1}', '{"a":"%s"}', '{"a":"x%s"}  ', '{"a":["%s",1,2,3,4]}'])
def test_half_of_a_surrogate_pair(half: str, frame: str) -> None:
    assert reason((frame % half).encode()) is strict_json.NotUtf8


def test_a_pair_and_a_backslash_are_whole() -> None:
    assert strict_json.parse(b'{"a":"\\ud83d\\ude00\\\\ud800"}') == {"a": "😀\\ud800"}


@pytest.mark.parametrize("key", ["model", "mod\\u0065l", "\\u006dodel"])
@pytest.mark.parametrize(
    "frame", ['{"model":1,"%s":2}', '{"%s":1,"model":1}', ' { "%s" : 1 , "x": [{"model":2}], "model" :1}']
)
def test_a_key_twice(frame: str, key: str) -> None:
    with pytest.raises(strict_json.Duplicate) as caught:
        strict_json.parse((frame % key).encode())
    assert caught.value.key == "model"
    assert "model" not in str(caught.value)


def test_it_is_the_right_key_of_which_is_told() -> None:
    with pytest.raises(strict_json.Duplicate) as caught:
        strict_json.parse(b'{"a":{"x":1,"b":2},"b":9,"a":123456}')
    assert caught.value.key == "a"


def test_a_key_twice_further_inside_is_the_last_one() -> None:
    assert strict_json.parse(b'{"a":{"b":1,"b":2}, "b":{"b":3}}') == {"a": {"b": 2}, "b": {"b": 3}}


# How much of it.


def test_so_many_values_and_no_more() -> None:
    most = strict_json.MOST_VALUES - 2  # the object, and the array's bracket
    assert len(strict_json.parse(b'{"a":[' + b",".join([b'",[{"'] * (most + 1)) + b"]}")["a"]) == most + 1
    assert reason(b'{"a":[' + b",".join([b"1"] * (most + 2)) + b"]}") is strict_json.TooLarge


@pytest.mark.parametrize("unit", [b"[]", b"{}", b'""', b'"\\""', b"1", b'{"a":1}', b"[[]]", b'"a,b"', b"null"])
def test_many_small_values(unit: bytes) -> None:
    assert reason(b'{"a":[' + b",".join([unit] * 100_000) + b"]}") is strict_json.TooLarge
    assert reason(b'{"a":[' + b",".join([unit] * 100_000)) is strict_json.TooLarge


@pytest.mark.parametrize("text", ["[{,", "a, b, c ", "\\", '"', '\\"', "[1, 2], ", "é,", "\n,"])
def test_text_is_one_value_however_long(text: str) -> None:
    body = {"a": text * 100_000, "b": [text] * 100, text: 1}
    assert strict_json.parse(standard.dumps(body).encode()) == body
    assert strict_json.parse(json.encode(body)) == body


@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize("text", ['\\\\\\"', "x", "[", '","'])
def test_values_are_counted_however_far_behind_they_stand(text: str, padding: int) -> None:
    """The beginning, which is looked at first, may end anywhere within a string."""
    long = "-" * padding + text * (2 * strict_json._BEGINNING // len(text))
    few = standard.dumps({"a": long, "b": ["[" * 100_000] * 100}).encode()
    assert strict_json.parse(few)["a"] == long
    assert reason(few[:-2] + b",1" * 100_000 + b"]}") is strict_json.TooLarge


def keys(count: int, spelled: str = "%d") -> bytes:
    return b"{" + ",".join(f'"{spelled % at}":1' for at in range(count)).encode() + b"}"


@pytest.mark.parametrize("spelled", ["%d", "\\u0061%d", "é%d"])
def test_so_many_keys_and_no_more(spelled: str) -> None:
    assert len(strict_json.parse(keys(strict_json.MOST_KEYS, spelled))) == strict_json.MOST_KEYS
    assert reason(keys(strict_json.MOST_KEYS + 1, spelled)) is strict_json.TooLarge


@pytest.mark.parametrize("unit", ["a", "\\u0061", "é", "\\n"])
def test_keys_so_long_and_no_longer(unit: str) -> None:
    half = strict_json.LONGEST_KEYS // 2
    assert strict_json.parse(f'{{"b{unit * (half - 1)}":1, "{unit * half}":2}}'.encode())
    assert reason(f'{{"b{unit * half}":1, "{unit * half}":2}}'.encode()) is strict_json.TooLarge


def test_an_ordinary_body_is_cleared_by_the_cheap_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("outside_of_strings", "_is_deep", "_check_integers", "msgspec"):
        monkeypatch.setattr(strict_json, name, None)
    said = {"role": "user", "content": 'He said: "No, [not] {that}", 20 times in 2026\n'}
    for body in ({"model": "m", "messages": [said] * 5, "stream": True, "seed": 2**63}, {}):
        assert strict_json.parse(json.encode(body)) == body


# What msgspec says, which is told in our terms.


@pytest.mark.parametrize(
    ("text", "what", "placed"),
    [
        (b'{"a":1e999}', "number", False),
        (b'{"a":' + b"1" * 5000 + b"}", "number", False),
        (b'{"a":"\\udc00"}', "half pair", True),
        (b'{"a":"\\ud800\\u0041"}', "half pair", True),
        (b'{"a":"\\ud800"}', "end", False),
        (b'{"a', "end", False),
        (b"", "end", False),
        (b'{"a":?}', None, True),
        (b"{} {}", None, True),
    ],
)
def test_msgspec_says_it_as_we_expect(text: bytes, what: str | None, placed: bool) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(text)
    assert [name for name, part in strict_json._COMPLAINTS.items() if part in str(caught.value)] == [what] * bool(what)
    assert bool(strict_json._PLACE.search(str(caught.value))) == placed
