"""What the redactor finds, what it leaves alone, and that neither depends on how the text is put together."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.redact import MARK, Redactor
from proxy.core.secret import Secret

RULES: dict[str, Any] = yaml.safe_load(Path("config/redaction.yaml").read_text())
BY_RULES = Redactor(RULES)

KEY = "mk-team-4f0c9a7e51d2b8c3"
HASHED = "team_Zk3v9Q-x81LmPq0rT"
BY_ALL = Redactor(RULES, [Secret(KEY)], [hashlib.sha256(HASHED.encode()).digest()])

FOUND = {
    "Authorization: Bearer abc": "Authorization: [redacted:authorization]",
    "proxy-authorization:Basic dXNlcjpwdw==": "proxy-authorization:[redacted:authorization]",
    '{"authorization": "Bearer abc", "n": 1}': '{"authorization": "[redacted:authorization]", "n": 1}',
    r'"{\"Authorization\":\"Bearer abc\"}"': r'"{\"Authorization\":\"[redacted:authorization]\"}"',
    "(b'authorization', b'Bearer abc'), (b'a', b'b')": "(b'authorization', b'[redacted:authorization]'), (b'a', b'b')",
    "cookie: a=b; c=d\naccept: x": "cookie: [redacted:cookie]\naccept: x",
    "Set-Cookie: sid=1": "Set-Cookie: [redacted:cookie]",
    "x-api-key: abc, y": "x-api-key: [redacted:credential], y",
    "api_key: abc": "api_key: [redacted:credential]",
    "MISTRAL_API_KEY=abc": "MISTRAL_API_KEY=[redacted:credential]",
    'password="correct horse" user=x': 'password="[redacted:credential]" user=x',
    r"{\"client_secret\": \"abc def\"}": r"{\"client_secret\": \"[redacted:credential]\"}",
    "GET /x?key=a1b2c3d4&n=1": "GET /x?key=[redacted:query-key]&n=1",
    "the Bearer abc123 was refused": "the Bearer [redacted:bearer] was refused",
    "bearer%20abcdefghijklmnopqrst": "bearer%20[redacted:bearer]",
    "jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl.": "jwt [redacted:jwt]",
    "use sk-proj-Ab12Cd34": "use [redacted:api-key]",
    r"a\nsk-abcdefghijklmnopqrst": r"a\n[redacted:api-key]",
    "AKIAIOSFODNN7EXAMPLE": "[redacted:api-key]",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789": "[redacted:api-key]",
    "https://user:p4ss@example.com/a": "https://user:[redacted:url-password]@example.com/a",
    "redis://:pw@cache:6379/0": "redis://:[redacted:url-password]@cache:6379/0",
    "-----BEGIN RSA PRIVATE KEY-----\nMII=\n-----END RSA PRIVATE KEY-----.": "[redacted:private-key].",
    "-----BEGIN PRIVATE KEY-----\nMII": "[redacted:private-key]",
    "to Ann.Lee+x@mail.example.co.uk, please": "to [redacted:email], please",
    "<ann@example.com>": "<[redacted:email]>",
    "?to=ann%40example.com&n=1": "?to=[redacted:email]&n=1",
    "jürgen@münchen.example": "[redacted:email]",
    "DE89 3704 0044 0532 0130 00": "[redacted:iban]",
    "GB29NWBK60161331926819.": "[redacted:iban].",
    "no93 8601 1117 947 and more": "[redacted:iban] and more",
    "be68 5390 0754 7034 EUROS": "[redacted:iban] EUROS",
    "MT84 MALT 0110 0001 2345 MTLC AST0 01S": "[redacted:iban]",
    "card 4111111111111111!": "card [redacted:card]!",
    "4111 1111 1111 1111 12/27": "[redacted:card] 12/27",
    "20 4111-1111-1111-1111": "20 [redacted:card]",
    "31 4111 1111 1111 1111": "31 [redacted:card]",
    "4111111111111111-visa": "[redacted:card]-visa",
    "3782 822463 10005": "[redacted:card]",
    "4222222222222": "[redacted:card]",
    r"pay:\n5555555555554444\n": r"pay:\n[redacted:card]\n",
    "card%3D4111111111111111": "card%3D[redacted:card]",
}

UNCHANGED = [
    "",
    "***",
    "[redacted:email]",
    "550e8400-e29b-41d4-a716-446655440000",
    "45320151-1283-4036-9123-123456789012",
    "deadbeef-0000-4abc-4532-015112830366",
    "8a1ff3b0c4d94f2e8c6ab7e1d2c3f405",
    "2026-11-20T10:52:00.123Z 2026-11-20 10:52",
    "1763632320 1763632320123 1763632320123456 1763632320123456789",
    "mistral-large-latest ministral-3b-2512 ft:open-mistral-7b:587a6b29:20240514:7e773925",
    "usage: 1234 tokens, max_tokens=4096, 0.4532015112830366 s",
    "missing bearer token; Bearer authentication is required",
    "4111111111111112",
    "GB28 NWBK 6016 1331 9268 19",
    "BE68539007547034EUR",
    "sk-learn-classification and scikit",
    "pip install package@1.2.3",
    "http://127.0.0.1:8080/v1/chat/completions?limit=20&after=x",
    "secretary, tokens, keys, cookies",
]

PIECES = [*FOUND, *UNCHANGED, "***", "[redacted:card]", " ", "\n", "\\n", "@", "=", ": ", "'", '"', "%3D", "-"]
FRAGMENTS = st.sampled_from(PIECES) | st.text(max_size=12)
TANGLED = st.lists(FRAGMENTS, max_size=8).map("".join)


@pytest.mark.parametrize("text", FOUND)
def test_a_rule_finds(text: str) -> None:
    assert BY_RULES.text(text) == FOUND[text]


@pytest.mark.parametrize("text", UNCHANGED)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert BY_ALL.text(text) == text


def test_every_rule_has_an_example() -> None:
    found = set(re.findall(r"\[redacted:([a-z-]+)\]", " ".join(FOUND.values())))
    assert found == {rule["name"] for rule in RULES["rules"]}


def test_hints_hide_nothing() -> None:
    plain = [{key: value for key, value in rule.items() if key != "contains"} for rule in RULES["rules"]]
    thorough = Redactor(RULES | {"rules": plain})
    for text in [*FOUND, *(text.upper() for text in FOUND)]:
        assert thorough.text(text) == BY_RULES.text(text)


@given(st.uuids().map(str) | st.binary(min_size=16, max_size=16).map(bytes.hex))
def test_identifiers_are_unchanged(text: str) -> None:
    assert BY_ALL.text(f"request {text} done") == f"request {text} done"


@given(st.floats().map(repr) | st.integers(-(10**12) + 1, 10**12 - 1).map(str) | st.datetimes().map(str))
def test_numbers_and_times_are_unchanged(text: str) -> None:
    assert BY_ALL.text(f"[{text}, 1]") == f"[{text}, 1]"


@given(st.lists(FRAGMENTS | st.sampled_from([KEY, HASHED]), max_size=10).map("".join))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    once = BY_ALL.text(text)
    assert BY_ALL.text(once) == once


@given(TANGLED, st.sampled_from([KEY, HASHED]), st.sampled_from(" \n\"'=&,;:/()"), TANGLED)
def test_a_key_survives_nowhere(before: str, key: str, between: str, after: str) -> None:
    assert key not in BY_ALL.text(f"{before}{between}{key}{between}{after}")


# Secrets whose text is known

SECRETS = st.text(st.characters(codec="utf-8", min_codepoint=0x20), min_size=6, max_size=60)
SPELLINGS: list[Callable[[str], str]] = [
    str,
    quote,
    quote_plus,
    lambda secret: quote(secret, safe=""),
    lambda secret: re.sub("%..", lambda escape: escape[0].lower(), quote(secret, safe="")),
    lambda secret: json.dumps(secret)[1:-1],
    lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1],
    lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/"),
]


def is_searched_for(secret: str) -> bool:
    return not any(secret in f"*** [redacted:{rule['name']}]" for rule in RULES["rules"])


@given(SECRETS, st.sampled_from(SPELLINGS), TANGLED, TANGLED)
def test_l2_a_known_secret_survives_in_no_spelling(
    secret: str, spell: Callable[[str], str], before: str, after: str
) -> None:
    assume(is_searched_for(secret))
    spelling = spell(secret)
    assert spelling not in Redactor(RULES, [Secret(secret)]).text(before + spelling + after)


@pytest.mark.parametrize("spell", SPELLINGS)
def test_a_known_secret_with_every_kind_of_character_is_found(spell: Callable[[str], str]) -> None:
    secret = 'p/w+"\\ ä😀\x7f(~)'
    assert Redactor(RULES, [Secret(secret)]).text(f"<{spell(secret)}>") == "<***>"


@given(SECRETS, st.binary(max_size=8), st.binary(max_size=8), st.booleans())
def test_a_known_secret_survives_in_no_base64(secret: str, before: bytes, after: bytes, in_urls: bool) -> None:
    encode = base64.urlsafe_b64encode if in_urls else base64.b64encode
    data = secret.encode()
    encoded = encode(before + data + after).decode()
    own = encoded[-(-len(before) * 8 // 6) : (len(before) + len(data)) * 8 // 6]
    text = Redactor(RULES | {"rules": []}, [Secret(secret)]).text(encoded)
    assert MARK in text
    assert own not in text
    assert len(text.replace(MARK, "")) <= len(encoded) - len(own)


@given(st.lists(SECRETS, min_size=1, max_size=30), st.data())
def test_many_secrets_are_found_as_one_is(secrets: list[str], data: st.DataObject) -> None:
    secret = data.draw(st.sampled_from(secrets))
    assume(is_searched_for(secret))
    assert secret not in Redactor(RULES, map(Secret, secrets)).text(f"before {secret} after")


def test_overlapping_secrets_become_one_mark() -> None:
    redactor = Redactor(RULES, [Secret("abcdef123"), Secret("def123xyz"), Secret("abcdef"), Secret("cdef12")])
    assert redactor.text("<abcdef123xyz> <abcdef> <abcdef123>") == "<***> <***> <***>"


def test_a_known_secret_goes_before_the_rules() -> None:
    assert BY_ALL.text(f"see https://x/?k={KEY} ann@example.com") == "see https://x/?k=*** [redacted:email]"


def test_what_is_too_short_or_part_of_a_mark_is_not_searched_for() -> None:
    redactor = Redactor(RULES, [Secret("short"), Secret("redacted"), Secret("")])
    once = redactor.text("a short text, ann@example.com")
    assert once == "a short text, [redacted:email]"
    assert redactor.text(once) == once


# Keys of which only the SHA-256 is known


@pytest.mark.parametrize(
    "text",
    [
        "{}", "key {}.", '"{}"', "x={}&y", "a/{}/b", "'{}'", r"\n{}", "%3D{}", "{}=", "({})", "team.{}.key", "{},{}",
        "run-of-letters-before/{}",
    ],
)  # fmt: skip
def test_a_hashed_key_is_found(text: str) -> None:
    assert BY_ALL.text(text.replace("{}", HASHED)) == text.replace("{}", MARK)


def test_a_hashed_key_with_dots_is_found_among_dots() -> None:
    key = "key.of.three-parts/and+more="
    redactor = Redactor(RULES, digests=[hashlib.sha256(digest.encode()).digest() for digest in (key, key[:-1])])
    assert redactor.text(f"use {key} or .{key[:-1]}...") == f"use {MARK} or .{MARK}..."


@given(st.text("abcXYZ019-_", min_size=16, max_size=80), st.sampled_from(["", " ", "\n", '"', "=", "/", "."]))
def test_any_hashed_key_is_found(key: str, around: str) -> None:
    redactor = Redactor(RULES | {"rules": []}, digests=[hashlib.sha256(key.encode()).digest()])
    assert redactor.text(around + key + around) == around + MARK + around


# Checks


def with_check_digit(digits: str) -> str:
    """The digits and the one that makes their Luhn sum a multiple of ten, found by trying."""
    for last in "0123456789":
        number = digits + last
        sums = [sum(divmod(int(digit) * (2 if at % 2 else 1), 10)) for at, digit in enumerate(reversed(number))]
        if sum(sums) % 10 == 0:
            return number
    raise AssertionError


CARDS = st.builds(
    lambda start, rest: with_check_digit(start + rest),
    st.sampled_from(["4", "51", "55", "2221", "2720", "34", "37", "6011", "65", "3528", "62", "36"]),
    st.text("0123456789", min_size=11, max_size=14),
)


@given(CARDS, st.lists(st.sampled_from(["", "", " ", "-"]), min_size=19, max_size=19))
def test_a_card_is_found_however_it_is_grouped(number: str, gaps: list[str]) -> None:
    written = "".join(digit + gap for digit, gap in zip(number, gaps, strict=False)).rstrip(" -")
    assert BY_RULES.text(f"<{written}>") == "<[redacted:card]>"


@given(CARDS, st.integers(0, 12), st.integers(1, 9))
def test_a_mistyped_card_is_no_card(number: str, at: int, change: int) -> None:
    wrong = number[:at] + str((int(number[at]) + change) % 10) + number[at + 1 :]
    assert BY_RULES.text(f"<{wrong}>") == f"<{wrong}>"


@given(st.sampled_from(sorted(RULES["iban_lengths"])), st.data())
def test_an_iban_of_any_country_is_found(country: str, data: st.DataObject) -> None:
    length = RULES["iban_lengths"][country]
    account = data.draw(st.text("0123456789ABCXYZ", min_size=length - 4, max_size=length - 4))
    number = "".join(str(int(character, 36)) for character in f"{account}{country}00")
    plain = f"{country}{98 - int(number) % 97:02}{account}"
    grouped = re.sub("(....)(?=.)", r"\1 ", plain)
    assert BY_RULES.text(f"{plain}, {grouped} OK") == "[redacted:iban], [redacted:iban] OK"


def test_the_country_of_norway_is_no_boolean() -> None:
    assert all(isinstance(country, str) for country in RULES["iban_lengths"])


# Linear time

parser = importlib.import_module("re._parser")


def quantifiers(tree: Any, depth: int = 0) -> Iterator[tuple[int, bool, int]]:
    """Of each quantifier of a pattern: how many repeated groups it is in, whether it is possessive, its upper bound."""
    if isinstance(tree, parser.SubPattern | tuple | list):
        for node in tree:
            if isinstance(node, tuple) and node and str(node[0]).endswith("REPEAT"):
                _, most, body = node[1]
                yield depth, str(node[0]) == "POSSESSIVE_REPEAT", int(most)
                yield from quantifiers(body, depth + (most > 1))
            else:
                yield from quantifiers(node, depth)


@pytest.mark.parametrize("rule", RULES["rules"], ids=lambda rule: rule["name"])
def test_no_quantifier_is_unbounded_and_none_in_another_can_go_back_far(rule: dict[str, str]) -> None:
    found = list(quantifiers(parser.parse(rule["pattern"])))
    assert found
    for depth, possessive, most in found:
        assert most <= 16384
        assert depth == 0 or (depth == 1 and (possessive or most <= 4))


def test_the_walk_sees_nested_and_unbounded_quantifiers() -> None:
    found = list(quantifiers(parser.parse("a{1,9}+(?:b*|(c)?){2,5}(?=d+)")))
    endless = int(parser.MAXREPEAT)
    assert found == [(0, True, 9), (0, False, 5), (1, False, endless), (1, False, 1), (0, False, endless)]


REPEATED = [
    "a", "a@", "a.", "@a.", "ann@example.com ", "%40", "eyJ-", "eyJaaaaaaaa.", "sk-", "sk-1-", "AKIAIOSFODNN7EXAMPLE",
    "authorization", "authorization: ", "authorization\"' \\", "password", 'password="', "key=", "bearer ",
    "-----BEGIN PRIVATE KEY-----", "://", "://a:", "://:a", "DE89 ", "DE89370400440532013001 ", "4", "4 ", "4-",
    "4111111111111111 ", "4111111111111112 ", "***", "*", "[redacted:", " ", "\\", "\\n",
    KEY, KEY[:-1], HASHED, HASHED + "/",
]  # fmt: skip


@pytest.mark.parametrize("piece", REPEATED)
def test_long_repetitions_are_no_special_case(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    once = BY_ALL.text(text)
    assert BY_ALL.text(once) == once
    assert KEY not in once
    assert "ann@" not in once


def test_text_in_which_ever_more_is_found_goes_as_a_whole() -> None:
    chain = Redactor(RULES | {"rules": [{"name": "chain", "pattern": "(?<![a-z])ab"}]})
    assert chain.text("abab") == "[redacted:chain][redacted:chain]"
    assert chain.text("ab" * 1000) == MARK


# Bad rules


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"name": "x", "pattern": "("}, "redaction rule 'x': missing"),
        ({"name": "x"}, "redaction rule 'x': 'pattern' is missing"),
        ({"name": "x", "pattern": "a", "check": "mod11"}, "redaction rule 'x': 'mod11' is missing or unknown"),
        ({"name": "x", "pattern": "a", "checks": "luhn"}, "redaction rule 'x': unknown key 'checks'"),
        ({"name": "x", "pattern": "a?"}, "redaction rule 'x': the pattern matches the empty text"),
        ({"name": "x", "pattern": 7}, "redaction rule 'x': "),
        ({"name": "X Y", "pattern": "a"}, "redaction rule 'X Y': a name is made of"),
        ({"pattern": "a"}, "redaction rule None: 'name' is missing"),
        ({"name": "x", "pattern": "a", "contains": ["A"]}, "redaction rule 'x': contains is a list"),
        ({"name": "x", "pattern": "a", "contains": "a"}, "redaction rule 'x': contains is a list"),
    ],
)
def test_a_bad_rule_is_refused_by_name(rule: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Redactor(RULES | {"rules": [rule]})


@pytest.mark.parametrize("rules", [{}, RULES | {"rules": None}, RULES | {"rules": ["email"]}])
def test_a_bad_file_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="redaction rules: "):
        Redactor(rules)
