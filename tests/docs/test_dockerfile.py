"""What the Dockerfile copies and runs, and what compose.yaml refers to, is there. No engine is needed to see that."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from copy import copy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Command
from starlette.routing import Route

from proxy.cli import main
from proxy.core.secret import Secret
from proxy.routes import Health, router
from proxy.serving.server import AFTER_DRAIN
from proxy.settings.model import Settings
from tests.asgi import ok

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
PROXY = COMPOSE["services"]["proxy"]


def instructions() -> Iterator[tuple[str, str]]:
    """Each instruction of the Dockerfile with its arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        name, _, arguments = line.partition(" ")
        yield name, arguments.strip()


ALL = list(instructions())


def last(name: str) -> str:
    """The arguments of the last such instruction: the one that holds."""
    return [arguments for found, arguments in ALL if found == name][-1]


def copied() -> list[str]:
    """What is copied from this folder."""
    words = [shlex.split(arguments) for name, arguments in ALL if name == "COPY" and "--from" not in arguments]
    return [source for sources in words for source in sources[:-1]]


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_exists_and_is_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if fnmatch(source, line.removeprefix("!")):
            ignored = not line.startswith("!")
    assert not ignored


def test_all_that_the_wheel_is_made_of_is_copied_before_it_is_built() -> None:
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*build["packages"], *build["force-include"], PROJECT["project"]["readme"], "pyproject.toml"}
    assert needed | set(PROJECT["project"]["license-files"]) <= set(copied())


def test_the_second_stage_has_what_the_first_one_made() -> None:
    stages = [arguments for name, arguments in ALL if name == "FROM"]
    assert len(stages) == 2
    assert stages[0].endswith(" AS build")
    assert [arguments for name, arguments in ALL if "--from=build" in arguments] == ["--from=build /venv /venv"]
    assert "/venv/bin:$PATH" in last("ENV")


def test_both_stages_run_a_python_that_the_project_allows() -> None:
    versions = {tuple(map(int, version.split("."))) for version in re.findall(r"python:(\d+\.\d+)", str(ALL))}
    assert len(versions) == 1
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert min(versions) >= tuple(map(int, least.split(".")))


def test_the_lock_has_every_dependency_with_its_hashes() -> None:
    pinned = {name.lower() for name in re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==", LOCK, re.MULTILINE)}
    needed = {re.split(r"[<>=;\[ ]", one)[0].lower() for one in PROJECT["project"]["dependencies"]}
    assert needed <= pinned
    assert LOCK.count("--hash=sha256:") >= len(pinned)


def test_what_it_runs_is_the_command_of_the_project() -> None:
    [command] = json.loads(last("ENTRYPOINT"))
    module, _, function = PROJECT["project"]["scripts"][command].partition(":")
    assert (module, function) == (main.callback.__module__ if main.callback else "", "main")


def test_its_arguments_are_ones_that_the_command_takes() -> None:
    name, *arguments = json.loads(last("CMD"))
    command: Command = copy(main.commands[name])  # it keeps the help option of the first context it was in
    found = command.make_context(name, arguments).params
    assert found["host"] == "0.0.0.0"
    assert str(found["port"]) == last("EXPOSE")


def test_the_health_check_asks_for_something_that_is_served() -> None:
    check = last("HEALTHCHECK")
    url = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", check)
    assert url
    assert url[1] == last("EXPOSE")
    served = router([], Health(configured=True, draining=lambda: False), ok).routes
    paths = {route.path for route in served if isinstance(route, Route)}
    assert url[2] in paths
    words = json.loads(check[check.index("[") :])
    compile(words[2], "<health check>", "exec")


def test_it_does_not_run_as_root() -> None:
    uid = last("USER")
    assert int(uid) > 0
    assert any(f"--uid {uid}" in arguments for name, arguments in ALL if name == "RUN")
    names = [name for name, _ in ALL]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]


# compose.yaml.


def test_compose_has_one_service_that_is_built_from_here() -> None:
    [service] = [one for one in COMPOSE["services"].values() if "build" in one]
    assert service is PROXY
    assert (ROOT / service["build"] / "Dockerfile").exists()
    assert service["read_only"] is True


def test_compose_publishes_the_port_and_mounts_the_file_that_the_image_reads() -> None:
    [port] = PROXY["ports"]
    assert port.rpartition(":")[2] == last("EXPOSE")
    source, target, mode = PROXY["volumes"][0].split(":")
    arguments = json.loads(last("CMD"))
    assert target == arguments[arguments.index("--config") + 1]
    assert mode == "ro"
    assert (ROOT / f"{source}.example").exists()


def test_compose_leaves_no_zombies() -> None:
    """The first process of a container inherits every orphan, and the proxy waits for its own children only."""
    assert PROXY["init"] is True


def test_compose_waits_for_the_drain() -> None:
    assert int(PROXY["stop_grace_period"].removesuffix("s")) >= Settings().server.drain + AFTER_DRAIN


def test_compose_passes_variables_that_are_read() -> None:
    """The other two are named by proxy.yaml, as the comment of the file shows, and are URLs that it takes."""
    from proxy.settings.overlay import FALLBACKS

    given = PROXY["environment"]
    assert set(given) <= {*FALLBACKS, "REDIS_URL", "LEDGER_URL"}
    shown = re.findall(r"^#   (\w+): {url: \"\$\{(\w+)\}\"}$", (ROOT / "compose.yaml").read_text(), re.MULTILINE)
    assert shown == [("store", "REDIS_URL"), ("ledger", "LEDGER_URL")]
    urls = {section: {"url": Secret(re.sub(r"\$\{.*?\}", "x", given[name]))} for section, name in shown}
    made = Settings.model_validate(urls)
    assert made.store.shared
    assert not made.ledger.off


def test_what_compose_starts_beside_it_keeps_what_it_is_told() -> None:
    assert set(PROXY["depends_on"]) == {"redis", "postgres"} == set(COMPOSE["services"]) - {"proxy"}
    assert "noeviction" in COMPOSE["services"]["redis"]["command"]
    for name in COMPOSE["volumes"]:
        assert any(volume.startswith(f"{name}:") for one in COMPOSE["services"].values() for volume in one["volumes"])


def test_the_state_is_on_a_volume_of_the_user_that_runs_it() -> None:
    folder = last("VOLUME")
    assert f"XDG_STATE_HOME={folder.rpartition('/')[0]}" in last("ENV")
    assert any(f"install -d -o {last('USER')} -m 0700 {folder}" in one for name, one in ALL if name == "RUN")
    assert PROXY["volumes"][1].partition(":")[2] == folder
