"""`mistral-proxy usage` as it is typed: out of a real database, as a table and as JSON."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from proxy.commands import usage as command
from proxy.commands.usage import objects, text
from proxy.store.database import open_database
from proxy.store.ledger.rows import KEY, SUMS
from proxy.store.ledger.statements import add
from proxy.store.ledger.usage import Line
from proxy.store.migrations import migrate
from proxy.store.tables import QUARTER
from tests.commands.conftest import CONFIG, run

NOW = 1_800_000_000_000
"""Friday 2027-01-15, 08:00 UTC."""

DAY = 86_400_000


@pytest.fixture(autouse=True)
def _at_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "unix_milliseconds", lambda: NOW)


def usage(*arguments: str) -> Result:
    return run(command.usage, *arguments)


def row(team: str, ago: int = 0, key: str = "key_a", model: str = "mistral-small", **sums: int) -> dict[str, Any]:
    start = (NOW - ago) // QUARTER * QUARTER
    given = dict.fromkeys(SUMS, 0) | {"requests": 1} | sums
    return {"team": team, "start": start, "key_id": key, "model": model, "operation": "chat"} | given


def line(by: str = "team", **values: Any) -> Line:
    parts = {"team": None, "model": None, "key": None, "day": None} | {by: "research"}
    return Line(**(parts | dict.fromkeys(SUMS, 0) | values))


@pytest.fixture
def rows(folder: Path) -> None:
    database = open_database(f"sqlite:///{folder}/state/mistral-proxy/ledger.db")
    (folder / "state/mistral-proxy").mkdir(parents=True)
    migrate(database)
    made = [
        row("research", requests=10, failed=1, prompt=1000, cached=400, completion=200, cost=1_234_567_891),
        row("research", DAY, "key_b", requests=5, estimated=2, prompt=50, completion=5, cost=1_000, saved=20_000),
        row("research", 8 * DAY, requests=100, cost=5_000_000_000),
        row("support", model="mistral-embed", requests=3, prompt=30, cost=60),
        row("support", model="", requests=2, unpriced=2),
    ]
    with database.begin() as connection:
        add(connection, database.mark, {tuple(one[k] for k in KEY): [one[s] for s in SUMS] for one in made})
    database.close()


@pytest.mark.usefixtures("rows")
def test_the_last_week_by_team() -> None:
    result = usage()
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "TEAM      REQUESTS  FAILED  ESTIMATED  UNPRICED  PROMPT  CACHED  COMPLETION  COST USD  SAVED USD",
        "research        15       1          2         0    1050     400         205  1.234569    0.00002",
        "support          5       0          0         2      30       0           0  0.000000    0.00000",
        "total           20       1          2         2    1080     400         205  1.234569    0.00002",
    ]


@pytest.mark.usefixtures("rows")
def test_as_json_amounts_are_exact() -> None:
    assert json.loads(usage("--json", "--team", "research").stdout) == [
        {
            "team": "research", "requests": 15, "failed": 1, "estimated": 2, "unpriced": 0, "prompt_tokens": 1050,
            "cached_tokens": 400, "completion_tokens": 205, "cost_usd": "1.234568891", "cost_nano_usd": 1_234_568_891,
            "saved_usd": "0.00002", "saved_nano_usd": 20_000,
        }
    ]  # fmt: skip


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    ("since", "requests"), [("1m", 10), ("12h", 10), ("24h", 15), ("7d", 15), ("8d", 115), ("36500d", 115)]
)
def test_how_far_back(since: str, requests: int) -> None:
    [only] = json.loads(usage("--json", "--team", "research", "--since", since).stdout)
    assert only["requests"] == requests


@pytest.mark.usefixtures("rows")
def test_divided_by_everything() -> None:
    found = json.loads(usage("--json", "--by", "day,team, key,model,team").stdout)
    assert [(one["team"], one["model"], one["key"], one["day"], one["requests"]) for one in found] == [
        ("research", "mistral-small", "key_a", "2027-01-15", 10),
        ("research", "mistral-small", "key_b", "2027-01-14", 5),
        ("support", None, "key_a", "2027-01-15", 2),
        ("support", "mistral-embed", "key_a", "2027-01-15", 3),
    ]
    lines = usage("--by", "day,model").stdout.splitlines()
    assert lines[0].startswith("MODEL          DAY         REQUESTS")
    assert lines[1].startswith("-              2027-01-15         2")
    assert lines[-1].startswith("total                            20")


@pytest.mark.usefixtures("rows")
def test_days_are_those_of_the_configured_zone() -> None:
    Path("proxy.yaml").write_text(CONFIG + "server: {time_zone: Pacific/Auckland}\n")  # 21:00 there, 13 hours ahead
    found = json.loads(usage("--json", "--by", "day", "--since", "2d", "--team", "research").stdout)
    assert [one["day"] for one in found] == ["2027-01-14", "2027-01-15"]
    Path("proxy.yaml").write_text(CONFIG + "server: {time_zone: Pacific/Honolulu}\n")  # 22:00 of the day before
    found = json.loads(usage("--json", "--by", "day", "--since", "2d", "--team", "research").stdout)
    assert [one["day"] for one in found] == ["2027-01-13", "2027-01-14"]


def test_nothing_was_used() -> None:
    head, total = usage("--team", "research").stdout.splitlines()
    assert head.startswith("TEAM   REQUESTS")
    assert total.split() == ["total", *["0"] * 7, "0.00", "0.00"]
    assert usage("--json").stdout == "[]\n"


def test_a_team_that_is_not_there() -> None:
    result = usage("--team", "reserch")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "mistral-proxy: There is no team 'reserch' in proxy.yaml, and it has used nothing.\n"


@pytest.mark.usefixtures("rows")
def test_a_team_that_is_gone_has_its_past() -> None:
    Path("proxy.yaml").write_text('teams: {support: {keys: ["${TEAM_KEY}"]}}')
    assert len(json.loads(usage("--json", "--team", "research").stdout)) == 1


@pytest.mark.parametrize(
    "arguments",
    [["--by", "month"], ["--by", ""], ["--by", "team,,day"], ["--since", "7"], ["--since", "1w"], ["extra"]],
)
def test_a_wrong_usage(arguments: list[str], folder: Path) -> None:
    assert usage(*arguments).exit_code == 2
    assert not (folder / "state").exists()


def test_without_a_ledger() -> None:
    Path("proxy.yaml").write_text(CONFIG + "ledger: {url: off}\n")
    result = usage()
    assert result.exit_code == 2
    assert result.stderr == "mistral-proxy: Usage reports need the ledger's database, and ledger.url is off.\n"


@given(st.lists(st.integers(0, 10**18), min_size=1, max_size=5))
def test_no_amount_is_off_by_more_than_half_a_micro_usd(amounts: list[int]) -> None:
    lines = [line(cost=cost) for cost in amounts]
    shown = [one.split()[-2] for one in text(lines, ("team",)).splitlines()[1:]]
    for exact, written in zip([*amounts, sum(amounts)], shown, strict=True):
        assert abs(Decimal(written).scaleb(9) - exact) <= 500
    for exact, made in zip(amounts, objects(lines, ("team",)), strict=True):
        assert (int(Decimal(made["cost_usd"]).scaleb(9)), made["cost_nano_usd"]) == (exact, exact)


def test_the_points_are_one_below_the_other() -> None:
    lines = [line(cost=cost) for cost in (1_000, 12_500_000_000, 0, 999)]
    shown = [one.split()[-2] for one in text(lines, ("team",)).splitlines()[1:]]
    assert shown == ["0.000001", "12.500000", "0.000000", "0.000001", "12.500002"]
