"""Each leak that is planted is found: what finds nothing, finds nothing because there is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.canary import run
from tests.canary.plants import PLANTS, TOGETHER
from tests.canary.traffic import CI_SEED


@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: "; ".join(names))
async def test_each_leak_that_is_planted_is_found(tmp_path: Path, names: tuple[str, ...]) -> None:
    plants = {name: PLANTS[name] for name in names}
    shared = any(plant.shared for plant in plants.values())
    outcome = await run.run(tmp_path, CI_SEED, run.FEW, shared=shared, plants=names)
    for name, plant in plants.items():
        assert any(plant.shows(one.canary, one.sink) for one in outcome.sightings), name


def test_each_leak_is_planted_and_those_together_can_be_told_apart() -> None:
    assert sorted(name for names in TOGETHER for name in names) == sorted(PLANTS)
    for names in TOGETHER:
        assert len({(PLANTS[name].kind, PLANTS[name].sink) for name in names}) == len(names)
