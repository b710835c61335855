"""Every fuzz target over its kept corpus, and a short seeded run beyond it; scripts/fuzz looks further."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz import run, targets
from tests.fuzz.mutate import mutated

MUTATIONS = 200
KEPT = [(name, file) for name in targets.names() for file in targets.kept(name)]


def test_every_target_has_a_corpus_and_every_corpus_a_target():
    assert [name for name in targets.names() if not targets.kept(name)] == []
    assert {folder.name for folder in targets.CORPUS.iterdir() if folder.is_dir()} <= set(targets.names())


def test_the_corpus_stays_small():
    assert sum(file.stat().st_size for _, file in KEPT) < 200_000


@pytest.mark.parametrize(("name", "file"), KEPT, ids=[f"{name}/{file.name}" for name, file in KEPT])
def test_a_kept_input_breaks_nothing(name, file):
    targets.load(name)(file.read_bytes())


@pytest.mark.parametrize("name", targets.names())
def test_a_mutated_input_breaks_nothing(name):
    check, seeds, random = targets.load(name), [file.read_bytes() for file in targets.kept(name)], Random(name)
    for _ in range(MUTATIONS):
        data = mutated(seeds, random)
        try:
            check(data)
        except Exception as error:
            error.add_note(f"the input: {data!r}")
            raise


def test_what_breaks_a_target_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "CORPUS", tmp_path)
    monkeypatch.setattr(targets, "load", lambda name: broken)
    with pytest.raises(ZeroDivisionError):
        run.plain("some", seconds=60, seed=1)
    [found] = targets.kept("some")
    assert found.name.startswith("found-")
    with pytest.raises(ZeroDivisionError):
        broken(found.read_bytes())


def broken(data: bytes) -> None:
    if b"\r\n" in data:
        raise ZeroDivisionError
