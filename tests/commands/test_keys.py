"""`mistral-proxy keys` as it is typed: what it prints where, what it keeps, and how it ends."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from proxy.commands import keys as commands
from proxy.commands.keys import describe, listing
from proxy.core import team_key
from proxy.core.secret import Secret
from proxy.serving.pepper import pepper
from proxy.store.database import open_database
from proxy.store.issued import IssuedKeys
from proxy.store.keys import KeyRow, Keys
from tests.asgi import Log
from tests.commands.conftest import CONFIG, run
from tests.postgres_server import PostgresServer

NOW = 1_800_000_000_000
DAY = 86_400_000


def keys(*arguments: str) -> Result:
    return run(commands.keys, *arguments)


def issue(*arguments: str) -> tuple[str, str]:
    """A new key, and its id."""
    result = keys(*arguments)
    assert result.exit_code == 0, result.output
    match = re.match(r"key_[a-z2-7]{8}\b", result.stderr)
    assert match
    assert team_key.is_whole(result.stdout.removesuffix("\n").encode())
    return result.stdout.strip(), match[0]


def listed(*arguments: str) -> list[dict[str, Any]]:
    result = keys("list", "--json", *arguments)
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def refused(result: Result, code: int) -> str:
    """Its one line."""
    assert (result.exit_code, result.stdout) == (code, "")
    [line] = result.stderr.splitlines()
    return line


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def to(now: int) -> None:
        monkeypatch.setattr(commands, "unix_milliseconds", lambda: now)

    to(NOW)
    return to


def worker(folder: Path, now: int = NOW) -> IssuedKeys:
    """What a proxy of the same user lets in."""
    database = open_database(f"sqlite:///{folder}/state/mistral-proxy/ledger.db")
    secret = pepper(None, {"XDG_STATE_HOME": f"{folder}/state"})
    issued = IssuedKeys(Keys(database), secret, lambda: now, Log())
    issued.refresh()
    database.close()
    return issued


# new.


def test_a_new_key_is_alone_on_standard_output_and_shown_once(folder: Path) -> None:
    result = keys("new", "research")
    assert result.exit_code == 0
    secret = result.stdout.removesuffix("\n")
    assert team_key.is_whole(secret.encode())
    [line] = result.stderr.splitlines()
    assert re.fullmatch(
        r"key_[a-z2-7]{8} of team research, good until it is revoked. The key is shown this once: keep it now\.", line
    )
    everything = keys("list").output + keys("list", "--json").output
    assert secret not in everything
    assert worker(folder).lookup(secret.encode()) == ("research", line.split()[0])


def test_a_new_key_with_a_name_and_an_end(clock: Callable[[int], None]) -> None:
    _, key_id = issue("new", "research", "--expires", "90d", "--name", "ci of main")
    assert listed() == [
        {
            "id": key_id, "team": "research", "name": "ci of main", "state": "active",
            "created": "2027-01-15T08:00:00Z", "expires": "2027-04-15T08:00:00Z",
            "revoked": None, "last_used": None, "successor": None,
        }
    ]  # fmt: skip


def test_a_team_that_is_not_there() -> None:
    line = refused(keys("new", "reserch"), 1)
    assert line == "mistral-proxy: There is no team 'reserch' in proxy.yaml: there is research, support."
    assert listed() == []


def test_without_a_configuration_there_is_the_team_local(folder: Path) -> None:
    Path("proxy.yaml").unlink()
    secret, key_id = issue("new", "local")
    assert worker(folder).lookup(secret.encode()) == ("local", key_id)
    assert "the environment: there is local" in refused(keys("new", "research"), 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["new"], ["new", "research", "x"], ["new", "research", "--expires", "90"], ["new", "research", "--name", ""],
        ["new", "research", "--name", "a\x1b[31mb"], ["new", "research", "--name", "x" * 65], ["rotate"], ["revoke"],
        ["rotate", "key_aaaaaaaa", "--overlap", "-1h"], ["nonsense"], [],
    ],
)  # fmt: skip
def test_a_wrong_usage(arguments: list[str], folder: Path) -> None:
    assert keys(*arguments).exit_code == 2
    assert not (folder / "state").exists()


# list.


def test_the_table(clock: Callable[[int], None]) -> None:
    _, old = issue("new", "research", "--name", "ci", "--expires", "90d")
    clock(NOW + 1000)
    _, other = issue("new", "support")
    clock(NOW + 2000)
    _, new = issue("rotate", old, "--overlap", "1h")
    keys("revoke", other)
    assert keys("list").stdout.splitlines() == [
        "ID            TEAM      NAME  STATE    CREATED               EXPIRES               LAST USED  SUCCESSOR",
        f"{old}  research  ci    rotated  2027-01-15T08:00:00Z  2027-01-15T09:00:02Z  -          {new}",
        f"{other}  support   -     revoked  2027-01-15T08:00:01Z  -                     -          -",
        f"{new}  research  ci    active   2027-01-15T08:00:02Z  2027-04-15T08:00:02Z  -          -",
    ]
    assert [row["id"] for row in listed("--team", "research")] == [old, new]


def test_an_empty_list() -> None:
    assert keys("list").stdout.split() == listing([]).split() != []
    assert listed() == []
    assert listed("--team", "research") == []
    assert "There is no team 'x'" in refused(keys("list", "--team", "x"), 1)


def test_the_keys_of_a_team_that_is_gone_are_listed_and_end_there() -> None:
    _, key_id = issue("new", "support")
    Path("proxy.yaml").write_text('teams: {research: {keys: ["${TEAM_KEY}"]}}')
    assert [(row["id"], row["state"]) for row in listed("--team", "support")] == [(key_id, "no team")]
    assert "There is no team 'support'" in refused(keys("rotate", key_id), 1)
    assert keys("revoke", key_id).exit_code == 0
    assert [row["state"] for row in listed()] == ["revoked"]


def test_what_a_key_is_described_as() -> None:
    rows = [
        KeyRow("key_a", "research", None, NOW, None, last_used=NOW + 5000),
        KeyRow("key_b", "research", "x", NOW, NOW + 1, successor="key_c"),
        KeyRow("key_c", "gone", None, NOW, NOW),
    ]
    described = describe(rows, {"research"}, NOW)
    assert [key["state"] for key in described] == ["active", "rotated", "expired"]
    assert described[0]["last_used"] == "2027-01-15T08:00:05Z"
    assert listing(described).splitlines()[2].split() == [
        "key_b", "research", "x", "rotated", "2027-01-15T08:00:00Z", "2027-01-15T08:00:00Z", "-", "key_c",
    ]  # fmt: skip


# rotate and revoke.


def test_a_rotation_prints_a_new_key_and_leaves_a_day(clock: Callable[[int], None], folder: Path) -> None:
    before, old = issue("new", "research", "--name", "ci")
    clock(NOW + 1000)
    after, new = issue("rotate", old)
    assert [(row["id"], row["successor"], row["expires"]) for row in listed()] == [
        (old, new, "2027-01-16T08:00:01Z"), (new, None, None),
    ]  # fmt: skip
    for now, good in ((NOW + DAY + 999, True), (NOW + DAY + 1000, False)):
        assert bool(worker(folder, now).lookup(before.encode())) == good
        assert worker(folder, now).lookup(after.encode()) == ("research", new)


def test_a_revocation(folder: Path) -> None:
    secret, key_id = issue("new", "research")
    result = keys("revoke", key_id)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{key_id} of team research is revoked: every worker refuses it within a second.\n"
    assert worker(folder).lookup(secret.encode()) is None


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_what_cannot_be_done(command: str, clock: Callable[[int], None]) -> None:
    secret, key_id = issue("new", "research", "--expires", "1d")
    for wrong in ("key_aaaaaaaa", secret):
        line = refused(keys(command, wrong), 1)
        assert line == "mistral-proxy: There is no key with this id: `mistral-proxy keys list` shows them."
    clock(NOW + DAY)
    assert refused(keys(command, key_id), 1) == f"mistral-proxy: The key {key_id} has expired before."
    _, other = issue("new", "research")
    keys("revoke", other)
    assert refused(keys(command, other), 1) == f"mistral-proxy: The key {other} was revoked before."


def test_a_key_is_revoked_without_a_pepper(folder: Path) -> None:
    """It may be the lost pepper that is the reason."""
    _, key_id = issue("new", "research")
    (folder / "state/mistral-proxy/pepper").write_text("spilt")
    assert keys("revoke", key_id).exit_code == 0
    assert [row["state"] for row in listed()] == ["revoked"]
    line = refused(keys("new", "research"), 2)
    assert "does not hold a pepper" in line
    assert "server.key_pepper" in line


# What it needs.


def test_the_configured_pepper_and_database_are_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEPPER", "the-pepper-of-the-configuration-0123456789")
    Path("my.yaml").write_text(
        CONFIG + f'server: {{key_pepper: "${{PEPPER}}"}}\nledger: {{url: "sqlite:///{folder}/own.db"}}\n'
    )
    secret, key_id = issue("new", "research", "--config", "my.yaml")
    [(kept,)] = sqlite3.connect(folder / "own.db").execute("SELECT digest FROM keys WHERE id = ?", [key_id]).fetchall()
    assert kept == team_key.digest(secret.encode(), Secret("the-pepper-of-the-configuration-0123456789"))
    assert not (folder / "state").exists()


@pytest.mark.parametrize("arguments", [["new", "research"], ["list"], ["rotate", "key_a"], ["revoke", "key_a"]])
def test_without_a_ledger_there_are_no_issued_keys(arguments: list[str]) -> None:
    Path("proxy.yaml").write_text(CONFIG + "ledger: {url: off}\n")
    assert refused(keys(*arguments), 2) == (
        "mistral-proxy: Issued keys need the ledger's database, and ledger.url is off."
    )


def test_a_configuration_that_is_wrong() -> None:
    Path("proxy.yaml").write_text("server: {prt: 1}\n")
    assert "proxy.yaml:1: server.prt" in refused(keys("list"), 2)
    assert "missing.yaml" in refused(keys("list", "--config", "missing.yaml"), 2)


def test_a_database_that_cannot_be_used(folder: Path) -> None:
    for url, said in (
        (f"sqlite:///{folder}/none/ledger.db", "unable to open database file"),
        (f"sqlite:///{folder}/proxy.yaml", "file is not a database"),
    ):
        Path("my.yaml").write_text(CONFIG + f'ledger: {{url: "{url}"}}\n')
        line = refused(keys("list", "--config", "my.yaml"), 2)
        place = url.removeprefix("sqlite:///")
        assert line == f"mistral-proxy: The ledger's database ({place}) cannot be used: {said}."


def test_a_key_that_is_good_for_no_time_is_none(folder: Path) -> None:
    result = keys("new", "research", "--expires", "0d")
    assert (result.exit_code, "good for no time" in result.output) == (2, True)


def test_a_state_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "state").write_text("a file")
    assert refused(keys("list"), 2).startswith("mistral-proxy: The folder of the ledger cannot be made: ")


def test_a_shared_database_makes_one_think_of_the_pepper(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PostgresServer()
    try:
        monkeypatch.setenv("LEDGER", server.fresh())
        Path("proxy.yaml").write_text(CONFIG + 'ledger: {url: "${LEDGER}"}\n')
        result = keys("new", "research")
        assert result.exit_code == 0
        [_, caution] = result.stderr.splitlines()
        assert f"server.key_pepper is set, on all of them, to what {folder}/state/mistral-proxy/pepper holds" in caution
        monkeypatch.setenv("PEPPER", "the-pepper-of-the-configuration-0123456789")
        with open("proxy.yaml", "a") as file:
            file.write('server: {key_pepper: "${PEPPER}"}\n')
        assert len(keys("new", "research").stderr.splitlines()) == 1
        assert [row["team"] for row in listed()] == ["research", "research"]
    finally:
        server.remove()


def test_neither_key_nor_pepper_is_in_any_output_but_the_one(folder: Path) -> None:
    secret, key_id = issue("new", "research")
    kept = (folder / "state/mistral-proxy/pepper").read_text().strip()
    outputs = [
        keys(*arguments).output for arguments in (["list"], ["list", "--json"], ["revoke", key_id], ["rotate", key_id])
    ]
    for output in outputs:
        assert secret not in output
        assert kept not in output
