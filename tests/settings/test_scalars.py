from __future__ import annotations

import pytest

from proxy.settings.scalars import TYPES, WRITTEN


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "0", 0),
        (int, "-5", -5),
        (int, "8080", 8080),
        (int, "123456789012345678", 123456789012345678),
        (float, "0.7", 0.7),
        (float, "1", 1.0),
        (float, "1e-3", 0.001),
        (float, "-2.5E2", -250.0),
        (bool, "true", True),
        (bool, "False", False),
        (str, "off", "off"),
        (str, "0123", "0123"),
        (str, "2026-01-01", "2026-01-01"),
        (str, "Größe mit Raum", "Größe mit Raum"),
    ],
)
def test_one_reading(kind, text, value):
    read = TYPES[kind].parse(text)
    assert read == value
    assert type(read) is kind


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (int, ["", "0123", "0x1F", "0o17", "1_000", "1e3", "1.0", " 1", "٣", "true", "9" * 19, "9" * 5000, None]),
        (float, ["", ".5", "1.", ".inf", ".nan", "nan", "1e999", "1_0.0", "00.5", "1:30", "true", "9" * 5000, None]),
        (bool, ["", "yes", "no", "on", "off", "y", "1", "0", "TrUe", None]),
        (str, ["", "a\nb", "a\tb", "a\x00", "\x1b[0m", "\u2028", "\ud800", None]),
    ],
)
def test_anything_else_is_refused(kind, texts):
    for text in texts:
        with pytest.raises(ValueError):
            TYPES[kind].parse(text)


def test_a_type_that_reads_the_text_itself_gets_it_when_it_is_short():
    assert [WRITTEN.parse(text) for text in ("30s", "off", None, "9" * 400 + "d")] == ["30s", "off", "", ""]
