"""Text made fit for a log: secrets and personal data are replaced by marks.

First the secrets that this proxy knows, in the spellings in which they travel, become `***`; then whatever a rule of
config/redaction.yaml finds becomes `[redacted:<rule>]`. Marks themselves are never searched, and the search is repeated
until it finds nothing more, so redacting twice is redacting once.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote, quote_plus

from proxy.core import json
from proxy.core.json import Json
from proxy.core.secret import Secret

MARK: Final = "***"
_ANY_MARK: Final = re.compile(r"(\*\*\*|\[redacted:[a-z0-9-]{1,40}\])")

_SHORTEST_SECRET: Final = 6
"""Characters. Anything shorter would be found in ordinary words."""

_GRAM: Final = _SHORTEST_SECRET

_SHORTEST_TOKEN, _LONGEST_TOKEN = 16, 512
_MOST_PASSES: Final = 8
_MOST_NESTED: Final = 3
"""JSON that is text in JSON, as the arguments of a tool are, and once more."""

# An escape before a token (a new line in JSON, an encoded `=`) ends in letters that are not the token's.
_RUN: Final = re.compile(r"(?:\\[bfnrt]|%[0-9A-Fa-f]{2})?([A-Za-z0-9._~+/=-]+)")
_PIECE: Final = re.compile(r"[A-Za-z0-9_-]{16,}")
_INNER: Final = re.compile(r"[A-Za-z0-9].*[A-Za-z0-9]")

Check = Callable[[str], int]
"""How many characters at the start of a find really are what its rule is about; 0: none."""

Span = tuple[int, int]


class Redactor:
    """`rules` is the parsed config/redaction.yaml; `secrets` are keys whose text is known, `digests` the SHA-256 of
    keys of which nothing else is known.

    A secret shorter than 6 characters is not searched for, nor one that is itself a part of a mark ("redacted").
    Raises ValueError, naming the rule, for bad rules.
    """

    def __init__(self, rules: Json, secrets: Iterable[Secret] = (), digests: Collection[bytes] = ()) -> None:
        try:
            checks: dict[str, Check] = {"none": len, "luhn": _card, "iban": partial(_iban, rules["iban_lengths"])}
            self._rules = [_Rule(row, checks) for row in rules["rules"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"redaction rules: {error}") from None
        self._digests = frozenset(digests)
        marks = " ".join([MARK, *(rule.mark for rule in self._rules)])
        spellings = {spelling for secret in secrets for spelling in _spellings(secret.reveal())}
        self._known = _Finder(spelling for spelling in spellings if spelling not in marks)

    def text(self, value: str) -> str:
        """`value` without secrets and without what the rules find, in a time linear in its length. A text in which ever
        more is found, which only a malicious one can be, becomes one `***`.
        """
        text = value
        while spans := list(self._known.spans(text)):
            text = _hide(text, spans)
        # What is left around a mark may be a find of its own: its surroundings have changed.
        for _ in range(_MOST_PASSES):
            if (less := self._pass(text)) == text:
                return text
            text = less
        return MARK

    def knows(self, word: str) -> bool:
        """Whether a word is one of the secrets that this proxy knows, or holds one. Much quicker than `text`."""
        return _sha256(word) in self._digests or any(True for _ in self._known.spans(word))

    def _pass(self, text: str) -> str:
        if self._digests:
            text = _between_marks(self._without_hashed, text)
        for rule in self._rules:
            text = _between_marks(rule.apply, text)
        return text

    def _without_hashed(self, text: str) -> str:
        spans = [(start, end) for start, end in _tokens(text) if _sha256(text[start:end]) in self._digests]
        return _hide(text, spans)


class _Rule:
    """One row of the rules file."""

    def __init__(self, row: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
        name = row.get("name")
        try:
            self._pattern = re.compile(row["pattern"])
            self._check = checks[row.get("check", "none")]
            self._hints: list[str] = row.get("contains", [])
            _validate(row, self._pattern)
        except KeyError as error:
            raise ValueError(f"redaction rule {name!r}: {error} is missing or unknown") from None
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(f"redaction rule {name!r}: {error}") from None
        self.mark = f"[redacted:{name}]"

    def apply(self, text: str) -> str:
        if self._hints:
            lower = text.lower()
            if not any(hint in lower for hint in self._hints):
                return text
        pieces: list[str] = []
        kept = at = 0
        while match := self._pattern.search(text, at):
            start, end = match.span(match.lastindex or 0)
            end = start + self._check(text[start:end])
            if end == start:
                at = match.start() + 1
                continue
            pieces += (text[kept:start], self.mark)
            kept = at = end
        return "".join([*pieces, text[kept:]]) if pieces else text


class _Finder:
    """Where any of many strings occurs, in a time that does not depend on how many they are. The text is looked at in
    steps: a string is known by each of the runs of six characters near its end, and wherever it stands one step falls
    on one of them.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._by_gram: dict[str, list[tuple[str, int]]] = {}
        ordered = sorted(strings, key=len)
        # Not the whole length of the shortest: keys often begin alike.
        self._step = min(len(ordered[0]) - _GRAM + 1, 16) if ordered else 1
        for string in ordered:
            for at in range(len(string) - _GRAM, len(string) - _GRAM - self._step, -1):
                self._by_gram.setdefault(string[at : at + _GRAM], []).append((string, at))

    def spans(self, text: str) -> Iterator[Span]:
        if not self._by_gram:
            return
        for seen in range(0, len(text) - _GRAM + 1, self._step):
            for string, at in self._by_gram.get(text[seen : seen + _GRAM], ()):
                if seen >= at and text.startswith(string, seen - at):
                    yield seen - at, seen - at + len(string)


def _validate(row: Mapping[str, Any], pattern: re.Pattern[str]) -> None:
    if unknown := row.keys() - {"name", "contains", "pattern", "check"}:
        raise ValueError(f"unknown key {min(unknown)!r}")
    if not re.fullmatch(r"[a-z0-9-]{1,40}", str(row["name"])):
        raise ValueError("a name is made of lower-case letters, digits and dashes, at most 40")
    hints = row.get("contains", [])
    if not isinstance(hints, list) or any(not isinstance(hint, str) or hint != hint.lower() for hint in hints):
        raise ValueError("contains is a list of words in lower case")
    if pattern.fullmatch(""):
        raise ValueError("the pattern matches the empty text")


def _between_marks(change: Callable[[str], str], text: str) -> str:
    """`change` applied to each stretch of text that is no mark."""
    if MARK not in text and "[redacted:" not in text:
        return change(text)
    pieces = _ANY_MARK.split(text)
    pieces[::2] = [change(piece) if piece else piece for piece in pieces[::2]]
    return "".join(pieces)


def _hide(text: str, spans: Iterable[Span]) -> str:
    """Each group of overlapping spans becomes one `***`."""
    pieces: list[str] = []
    kept = 0
    for start, end in sorted(spans):
        if not pieces or start >= kept:
            pieces += (text[kept:start], MARK)
        kept = max(kept, end)
    return "".join([*pieces, text[kept:]])


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _tokens(text: str) -> Iterator[Span]:
    """Where keys may stand: runs of the characters keys are made of, whole, without punctuation around, in pieces."""
    for run in _RUN.finditer(text):
        start, end = run.span(1)
        if end - start < _SHORTEST_TOKEN:
            continue
        found = {(start, end)}
        if inner := _INNER.search(text, start, end):
            found.add(inner.span())
        found.update(piece.span() for piece in _PIECE.finditer(text, start, end))
        yield from (span for span in found if _SHORTEST_TOKEN <= span[1] - span[0] <= _LONGEST_TOKEN)


def _spellings(secret: str) -> Iterator[str]:
    """The secret as it is written in plain text, URLs, JSON and base64."""
    if len(secret) < _SHORTEST_SECRET:
        return
    yield secret
    for quoted in (quote(secret, safe=""), quote(secret), quote(secret, safe="!~*'()"), quote_plus(secret)):
        yield quoted
        yield re.sub(r"%[0-9A-F]{2}", lambda escape: escape[0].lower(), quoted)
    escaped = json.encode(secret).decode()[1:-1]
    ascii_only = re.sub("[^ -~]", _json_escape, escaped)
    for written in (escaped, ascii_only):
        for _ in range(_MOST_NESTED):
            yield written
            yield written.replace("/", "\\/")
            written = json.encode(written).decode()[1:-1]
    for encoded in _base64(secret.encode()):
        yield encoded
        yield encoded.translate({ord("+"): "-", ord("/"): "_"})


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _base64(data: bytes) -> Iterator[str]:
    """What `data` contributes to a base64 text, depending on how many bytes precede it: the characters made of its bits
    alone. At most six bits of it at either end share a character with a neighbour."""
    for before in range(3):
        text = b64encode(bytes(before) + data).decode()
        yield text[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]


def _card(find: str) -> int:
    """A card number by length and Luhn's check digit (ISO/IEC 7812-1). The last groups may be no part of it."""
    end = len(find)
    while end > 0:
        digits = [int(digit) for digit in find[:end] if digit.isdigit()]
        if 13 <= len(digits) <= 19 and _luhn(digits):
            return end
        end = max(find.rfind(" ", 0, end), find.rfind("-", 0, end))
    return 0


def _luhn(digits: list[int]) -> bool:
    doubled = (digit * 2 for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(digit - 9 if digit > 9 else digit for digit in doubled)) % 10 == 0


def _iban(lengths: Mapping[str, int], find: str) -> int:
    """An IBAN by its country's length and its check digits (ISO 13616: the remainder by 97 is 1)."""
    letters = [at for at, character in enumerate(find) if character != " "]
    length = lengths.get(find[:2].upper(), len(find) + 1)
    if length > len(letters):
        return 0
    end = letters[length - 1] + 1
    if find[end : end + 1].isalnum():
        return 0
    plain = find[:end].replace(" ", "")
    number = "".join(str(int(character, 36)) for character in plain[4:] + plain[:4])
    return end if int(number) % 97 == 1 else 0
