from __future__ import annotations

from typing import Annotated, Literal, Optional

import pytest
from pydantic import Field

from proxy.core.config import Duration, SecretText, Size, Strict
from proxy.settings import schema
from proxy.settings.model import Team
from proxy.settings.scalars import TYPES, WRITTEN
from proxy.settings.schema import Choice, Hidden, Items, Maybe, Named, Section


class Inner(Strict):
    flag: bool = False


class Outer(Strict):
    inner: Inner = Inner()
    named: dict[str, Inner] = Field(default_factory=dict)
    names: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    word: Literal["a", "b"] = "a"
    wait: Duration = 1.0
    size: Size = 1
    maybe: int | None = None
    optional: Optional[Duration] = None  # noqa: UP045 - both spellings are read
    keys: list[SecretText] = Field(default_factory=list)


def test_every_type_of_a_model_has_its_kind():
    kinds = dict(schema.section(Outer).keys)
    keys = kinds.pop("keys")
    inner = Section({"flag": TYPES[bool]}, {})
    assert kinds == {
        "inner": inner,
        "named": Named(inner),
        "names": Items(TYPES[str]),
        "word": Choice(("a", "b")),
        "wait": WRITTEN,
        "size": WRITTEN,
        "maybe": Maybe(TYPES[int]),
        "optional": Maybe(WRITTEN),
    }
    assert isinstance(keys, Items)
    assert isinstance(keys.of, Hidden)
    assert not keys.of.access
    with pytest.raises(ValueError, match="a secret is not written into the file"):
        keys.of.check("sk-literal")


def test_a_type_nobody_reads_is_noticed_when_the_schema_is_made():
    class Odd(Strict):
        data: bytes = b""

    with pytest.raises(KeyError):
        schema.section(Odd)


def test_team_keys_let_somebody_in():
    kind = schema.section(Team).keys["keys"]
    assert isinstance(kind, Items)
    assert isinstance(kind.of, Hidden)
    assert kind.of.access
