"""From a changed file to a new generation, or to lines that say why not."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from proxy.app import Application
from proxy.generation import Process, prepare
from proxy.logs import Writer
from proxy.serving.current import MOST_PROBLEMS, Current
from proxy.serving.plan import plan
from proxy.serving.reload import Reloader, follow, from_threads, look
from proxy.settings.load import Sources

GOOD = 'server: {port: 0}\nteams: {research: {keys: ["${TEAM_KEY}"]}}\n'
PATIENCE = 20


class Setting:
    """An application that runs with a file of its own."""

    app: Application
    reloader: Reloader
    current: Current

    def __init__(self, folder: Path, text: str = GOOD, **environ: str) -> None:
        self.file = folder / "proxy.yaml"
        self.file.write_text(text)
        self.lines = io.BytesIO()
        given = {"TEAM_KEY": "sk-team-key-0123456789", "MISTRAL_API_KEY": "sk-mistral-0123456789"}
        self.plan = plan(Sources.read(self.file, given | {"XDG_STATE_HOME": str(folder)} | environ), simulate=False)

    @classmethod
    async def begun(cls, *arguments: Any, **environ: str) -> Setting:
        made = await asyncio.to_thread(cls, *arguments, **environ)
        made.app = Application(made.plan.settings, made.plan.sources.digest, Process(Writer(made.lines)))
        made.reloader = Reloader(made.app)
        made.current = Current(made.plan, from_threads(made.reloader.log))
        return made

    async def read(self, text: str | None = None, *, asked: bool = False) -> list[dict[str, Any]]:
        """The lines about this new content."""
        if text is not None:
            await asyncio.to_thread(self.file.write_text, text)
        self.lines.seek(0)
        self.lines.truncate()
        for _ in range(1 if asked else 3):  # a file has to be at rest
            await look(self.current, self.reloader, asked=asked)
        await asyncio.sleep(0)  # what comes from another thread is written in the next turn
        return self.logged()

    def logged(self) -> list[dict[str, Any]]:
        self.app.process.log.flush()
        lines = [json.loads(line) for line in self.lines.getvalue().splitlines()]
        return [{name: value for name, value in line.items() if name != "time"} for line in lines]

    @property
    def number(self) -> int:
        return self.app.current.number


@pytest.fixture
async def setting(tmp_path: Path) -> Any:
    made = await Setting.begun(tmp_path)
    yield made
    await made.app.close()


def failed(line: dict[str, Any]) -> tuple[Any, ...]:
    assert (line["level"], line["event"]) == ("error", "reload_failed")
    return line["line"], line["path"], line["what"]


async def test_k1_a_new_file_is_a_new_generation(setting: Setting) -> None:
    [line] = await setting.read(GOOD + "models: {default: m}\n")
    assert line == {
        "level": "info", "event": "reloaded", "generation": 2, "file": str(setting.file),
        "config": setting.app.current.config,
    }  # fmt: skip
    assert setting.app.current.settings.models.default == "m"
    assert await setting.read() == []


async def test_k1_all_that_is_wrong_is_said_by_line(setting: Setting) -> None:
    lines = await setting.read(GOOD + "models: {default: }\nsevrer: {}\nlogging:\n  level: loud\n")
    assert [failed(line)[:2] for line in lines] == [(4, "sevrer"), (6, "logging.level")]
    assert {line["file"] for line in lines} == {str(setting.file)}
    assert setting.number == 1
    assert await setting.read() == []  # said once
    assert len(await setting.read(asked=True)) == 2  # or when somebody asks


async def test_k1_a_mended_file_is_said_to_be_one(setting: Setting) -> None:
    await setting.read("[")
    assert await setting.read(GOOD) == [{"level": "info", "event": "reload_unchanged", "generation": 1}]
    assert await setting.read() == []
    await setting.read("[")
    [line] = await setting.read(GOOD + "# mended\n")
    assert (line["event"], setting.number) == ("reloaded", 2)


async def test_k1_a_flood_of_problems_is_no_flood_of_lines(setting: Setting) -> None:
    lines = await setting.read("".join(f"x{i}: 1\n" for i in range(1000)))
    assert len(lines) == MOST_PROBLEMS + 1
    assert lines[-1]["what"].startswith("and 980 more")


@pytest.mark.parametrize("text", ["", "\n  \n"])
async def test_k1_an_empty_file_is_none(setting: Setting, text: str) -> None:
    [line] = await setting.read(text)
    assert failed(line) == (None, None, "the file is empty")
    assert setting.number == 1


async def test_k1_a_file_that_is_gone(setting: Setting) -> None:
    await asyncio.to_thread(setting.file.unlink)
    [line] = await setting.read()
    assert failed(line) == (None, None, "cannot be read: No such file or directory")
    assert await setting.read(GOOD) == [{"level": "info", "event": "reload_unchanged", "generation": 1}]


async def test_k1_a_start_would_be_refused(tmp_path: Path) -> None:
    """Nothing to pay with any more, and strangers let in."""
    text = GOOD + "providers: {mistral: {api_keys: ['${KEY}']}}\n"
    setting = await Setting.begun(tmp_path, text, KEY="sk-mistral-0123456789", MISTRAL_API_KEY="")
    assert "Set MISTRAL_API_KEY" in failed((await setting.read(GOOD))[0])[2]
    for host in ("0.0.0.0", "::"):
        lines = await setting.read(
            text.replace("port: 0", f"host: '{host}'").partition("teams:")[0] + text.split("\n")[2]
        )
        assert "at least one team" in failed(lines[0])[2]
    assert setting.number == 1
    await setting.app.close()


async def test_no_reload_opens_a_door_that_a_start_would_keep_shut(tmp_path: Path) -> None:
    """The file would listen on the loopback only, where no team is needed; the running proxy listens everywhere."""
    text = GOOD.replace("port: 0", "host: 0.0.0.0, port: 0")
    setting = await Setting.begun(tmp_path, text)
    assert "at least one team" in failed((await setting.read("server: {port: 0}\n"))[0])[2]
    assert setting.number == 1
    await setting.app.close()


async def test_what_needs_a_restart_keeps_its_value(setting: Setting) -> None:
    lines = await setting.read(GOOD.replace("port: 0", "port: 1, host: 127.0.0.2, drain: 1s"))
    assert [line["event"] for line in lines] == ["reloaded", "needs_restart"]
    assert lines[1]["settings"] == "server.host, server.port"
    server = setting.app.current.settings.server
    assert (server.host, server.port, server.drain) == ("127.0.0.1", 0, 1.0)
    lines = await setting.read(GOOD)
    assert [line["event"] for line in lines] == ["reloaded"]


async def test_k4_warnings_are_logged(setting: Setting) -> None:
    setting.file.chmod(0o666)
    lines = await setting.read(GOOD + "# changed\n")
    assert [(line["level"], line["event"]) for line in lines] == [("info", "reloaded"), ("warning", "config_warning")]
    assert lines[1]["what"] == "every user of this machine can change this file"


async def test_during_the_drain_nothing_is_replaced(setting: Setting) -> None:
    setting.app.process.draining = True
    [line] = await setting.read(GOOD + "# changed\n", asked=True)
    assert (line["level"], line["event"], setting.number) == ("info", "reload_ignored", 1)
    assert await setting.read() == []


async def test_a_reload_that_the_drain_overtakes_is_ignored(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(settings: Any) -> Any:
        setting.app.process.draining = True
        return prepare(settings)

    monkeypatch.setattr("proxy.app.prepare", slow)
    [line] = await setting.read(GOOD + "# changed\n", asked=True)
    assert (line["event"], setting.number) == ("reload_ignored", 1)


async def test_k15_a_fault_of_ours_ends_nothing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError("sk-team-key-0123456789")

    with monkeypatch.context() as patch:
        patch.setattr(setting.app, "replace", fail)
        [line] = await setting.read(GOOD + "# changed\n")
    assert failed(line) == (None, None, "a fault of the proxy: RuntimeError")
    [line] = await setting.read(asked=True)
    assert (line["event"], setting.number) == ("reloaded", 2)


# The loop.


async def within(setting: Setting, number: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while setting.number < number:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_k6_a_signal_and_a_change_are_followed(setting: Setting, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGHUP)
    following = asyncio.create_task(follow(setting.current, setting.reloader, 0.005))
    try:
        setting.file.write_text(GOOD + f"models: {{default: m}}\n# {tmp_path}\n")
        await within(setting, 2)
        (tmp_path / "key").write_text("sk-another-key-0123456789")
        setting.file.write_text(GOOD.replace('"${TEAM_KEY}"', f"file:{tmp_path}/key"))
        await within(setting, 3)
        (tmp_path / "key").write_text("sk-yet-another-key-0123456789")  # a file that was not there at first
        await within(setting, 4)
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            while not any(line["event"] == "reload_unchanged" for line in setting.logged()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert not following.done()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        after = signal.signal(signal.SIGHUP, before)
    assert after == signal.SIG_IGN
    assert [line["generation"] for line in setting.logged() if line["event"] == "reloaded"] == [2, 3, 4]


async def test_k15_a_fault_is_not_the_end_of_looking(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ours, at some look: it is in the log, and the next look finds what there is to find."""
    look, faults = setting.current.look, [RuntimeError("sk-team-key-0123456789")]

    def fails_once(*, asked: bool) -> Any:
        if faults:
            raise faults.pop()
        return look(asked=asked)

    before = signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr(setting.current, "look", fails_once)
    await asyncio.to_thread(setting.file.write_text, GOOD + "# changed\n")
    following = asyncio.create_task(follow(setting.current, setting.reloader, 0.005))
    try:
        await within(setting, 2)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        signal.signal(signal.SIGHUP, before)
    line = setting.logged()[0]
    assert (line["level"], line["event"], line["kind"]) == ("error", "unexpected", "RuntimeError")
    assert "fails_once:" in line["place"]
