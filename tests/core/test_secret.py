from __future__ import annotations

import copy
import json
import pickle
import traceback
from dataclasses import asdict, dataclass

import msgspec
import pytest

from proxy.core.secret import Secret

TEXT = "sk-secret-0123456789"
SECRET = Secret(TEXT)


@dataclass
class Holder:
    secret: Secret


SHOWN = [
    lambda: str(SECRET),
    lambda: repr(SECRET),
    lambda: f"{SECRET} {SECRET!s} {SECRET!r} {SECRET:>40}",
    lambda: "{} {:s} {!a}".format(SECRET, SECRET, SECRET),  # noqa: UP032 (the other ways to format)
    lambda: "%s %r" % (SECRET, SECRET),  # noqa: UP031
    lambda: format(SECRET, "x"),
    lambda: repr([SECRET, {"key": SECRET}, Holder(SECRET)]),
    lambda: json.dumps({"key": SECRET}, default=str),
]


@pytest.mark.parametrize("show", SHOWN)
def test_c10_whatever_shows_it_shows_stars(show) -> None:
    shown = show()
    assert "***" in shown
    assert TEXT[:6] not in shown


REFUSED = [
    lambda: pickle.dumps(SECRET),
    lambda: pickle.dumps({"key": [SECRET]}),
    lambda: copy.copy(SECRET),
    lambda: copy.deepcopy({"key": SECRET}),
    lambda: asdict(Holder(SECRET)),
    lambda: json.dumps(SECRET),
    lambda: msgspec.json.encode(SECRET),
    lambda: hash(SECRET),
    lambda: {SECRET: 1},
    lambda: vars(SECRET),
    lambda: SECRET + "x",  # type: ignore[operator]
    lambda: list(SECRET),  # type: ignore[call-overload]
    lambda: len(SECRET),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("take", REFUSED)
def test_c10_it_goes_nowhere_by_itself(take) -> None:
    with pytest.raises(TypeError) as caught:
        take()
    assert TEXT not in "".join(traceback.format_exception(caught.value))


def test_it_is_compared_without_telling_how_near() -> None:
    assert Secret(TEXT) == SECRET
    assert Secret(TEXT + "x") != SECRET
    assert SECRET != TEXT
    assert SECRET.reveal() == TEXT
    assert (bool(SECRET), bool(Secret(""))) == (True, False)
