"""The commands as somebody uses them for the first time: what they print works when it is pasted."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mistralai.client import Mistral

from proxy import __version__
from tests.conftest import TEAM_KEY, Simulator
from tests.programs import COMMAND, PATIENCE, Program, until

PROVIDER_KEY = "sk-mistral-of-the-user-0123456789"


class Started:
    """`serve` in a folder of its own, and what it printed until it answered."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        place = {"XDG_STATE_HOME": str(folder / "state")}
        self.program = Program("serve", *arguments, env=place | (env or {}), cwd=folder)
        self.url = self.program.url()
        until(lambda: any(line.startswith("  -d ") for line in self.program.out), "the end of the banner")
        self.banner = "".join(self.program.out)

    @property
    def key(self) -> str:
        [line] = [line for line in self.banner.splitlines() if line.startswith("  key ")]
        return line.split()[1]


@pytest.fixture
def zero_config(tmp_path: Path, simulator: Simulator) -> Iterator[Started]:
    """As a newcomer starts it: nothing but a key of Mistral's (whose place the simulator takes)."""
    started = Started(tmp_path, "--port", "0", env={"MISTRAL_API_KEY": PROVIDER_KEY, "MISTRAL_BASE_URL": simulator.url})
    yield started
    started.program.stop()


def pasted(text: str, **environ: str) -> tuple[list[str], dict[str, str]]:
    """What a shell makes of these lines: the arguments of `curl`, which need not be installed, and the environment."""
    script = f'curl() {{ printf "%s\\0" "$@"; }}\n{text}\nprintf "\\001"; env -0'
    clean = {"PATH": os.environ["PATH"], **environ}
    done = subprocess.run(
        ["sh", "-euc", script], env=clean, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert not done.stderr
    arguments, _, rest = done.stdout.partition("\1")
    found = dict(line.split("=", 1) for line in rest.split("\0") if line)
    return arguments.split("\0")[:-1], found


def run_curl(arguments: list[str]) -> httpx2.Response:
    """What curl does with a URL and the options -H and -d."""
    url, *options = arguments
    pairs = list(zip(options[::2], options[1::2], strict=True))
    assert {option for option, _ in pairs} == {"-H", "-d"}
    headers = [tuple(value.split(": ", 1)) for option, value in pairs if option == "-H"]
    [body] = [value for option, value in pairs if option == "-d"]
    return httpx2.post(url, headers=headers, content=body, trust_env=False)  # type: ignore[arg-type]


def commands(banner: str) -> str:
    """The part of a banner that is meant to be pasted."""
    return banner[banner.index("export ") :]


# The start without a configuration.


def test_the_banner_says_what_one_has_to_know(zero_config: Started, tmp_path: Path) -> None:
    file = tmp_path / "state" / "mistral-proxy" / "local.key"
    banner = zero_config.banner
    assert zero_config.url.startswith("http://127.0.0.1:")
    assert f"export OPENAI_BASE_URL={zero_config.url}/v1\n" in banner
    assert f"export OPENAI_API_KEY='{zero_config.key}'\n" in banner
    assert str(file) in banner
    assert re.search(r"^  config +none", banner, re.MULTILINE)
    assert re.search(r"^  teams +local  \(may spend 5 USD/day\)$", banner, re.MULTILINE)
    assert "SIMULATED" not in banner
    assert PROVIDER_KEY not in banner


def test_the_curl_line_works_when_it_is_pasted(zero_config: Started) -> None:
    arguments, _ = pasted(commands(zero_config.banner))
    answer = run_curl(arguments)
    assert answer.status_code == 200
    assert "Hello!" in answer.json()["choices"][0]["message"]["content"]


def test_the_export_lines_are_all_that_openais_sdk_needs(zero_config: Started) -> None:
    _, environ = pasted(commands(zero_config.banner))
    program = """
from openai import OpenAI
answer = OpenAI(max_retries=0).chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello!"}])
print(answer.choices[0].message.content)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert "Hello!" in done.stdout, done.stderr


def test_the_key_is_kept_for_this_user_alone(zero_config: Started, tmp_path: Path) -> None:
    file = tmp_path / "state" / "mistral-proxy" / "local.key"
    assert file.read_text().strip() == zero_config.key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert {entry.name for entry in file.parent.iterdir()} >= {"local.key", "ledger.db", "pepper", "journal"}
    assert {stat.S_IMODE(entry.stat().st_mode) & 0o077 for entry in file.parent.glob("*.key")} == {0}


def test_the_second_start_has_the_key_of_the_first(zero_config: Started, tmp_path: Path) -> None:
    second = Started(tmp_path, "--port", "0", "--simulate")
    second.program.stop()
    assert second.key == zero_config.key


def test_two_first_starts_at_once_have_one_key(tmp_path: Path) -> None:
    both = [
        Program("serve", "--simulate", "--port", "0", env={"XDG_STATE_HOME": str(tmp_path)}, cwd=tmp_path)
        for _ in range(2)
    ]
    try:
        for program in both:
            program.url()
        until(lambda: all(any("API_KEY" in line for line in program.out) for program in both), "two banners")
        keys = {line for program in both for line in program.out if line.startswith("export OPENAI_API_KEY=")}
    finally:
        for program in both:
            program.stop()
    assert len(keys) == 1
    assert [entry.name for entry in (tmp_path / "mistral-proxy").glob("*key*")] == ["local.key"]


def test_with_simulate_no_key_is_needed(tmp_path: Path) -> None:
    started = Started(tmp_path, "--simulate", "--port", "0")
    try:
        assert "SIMULATED" in started.banner
        answer = run_curl(pasted(commands(started.banner))[0])
    finally:
        started.program.stop()
    assert answer.status_code == 200
    assert answer.headers["x-proxy-simulated"] == "true"


def test_with_teams_the_banner_shows_no_key(tmp_path: Path) -> None:
    (tmp_path / "proxy.yaml").write_text(
        'models: {default: house}\nteams: {zeta: {keys: ["${TEAM_KEY}"]}, alpha: {keys: ["sha256:%s"]}}' % ("0" * 64)
    )
    started = Started(tmp_path, "--simulate", "--port", "0", env={"TEAM_KEY": TEAM_KEY})
    try:
        assert TEAM_KEY not in started.banner
        assert re.search(r"^  config +proxy.yaml$", started.banner, re.MULTILINE)
        assert re.search(r"^  teams +zeta, alpha$", started.banner, re.MULTILINE)
        assert not list((tmp_path / "state").rglob("local.key"))
        filled_in = commands(started.banner).replace("<your team key>", TEAM_KEY)
        arguments, environ = pasted(filled_in)
        assert environ["OPENAI_API_KEY"] == TEAM_KEY
        answer = run_curl(arguments)
    finally:
        started.program.stop()
    assert answer.request.headers["authorization"] == f"Bearer {TEAM_KEY}"
    assert answer.status_code == 404  # "house" is no model, and the simulator knows it
    assert json.loads(answer.request.content)["model"] == "house"


def test_the_health_of_a_fresh_start(zero_config: Started) -> None:
    status = httpx2.get(f"{zero_config.url}/health", trust_env=False).json()
    assert status == {
        "status": "ok", "service": "mistral-proxy", "version": __version__, "mistral_configured": True,
    }  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full"])
def test_it_serves_whatever_has_become_of_its_standard_streams(tmp_path: Path, streams: str, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    (tmp_path / "proxy.yaml").write_text(
        f"server: {{port: {port}, workers: {workers}}}\nstore: {{url: redis://nobody}}"
    )
    command = ("sh", "-c", f'exec {COMMAND} "$@" {streams}', "sh")
    program = Program("serve", "--simulate", env={"XDG_STATE_HOME": str(tmp_path)}, cwd=tmp_path, command=command)

    def answers() -> bool:
        assert program.process.poll() is None
        with suppress(httpx2.TransportError):
            return httpx2.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).status_code == 200
        return False

    try:
        until(answers, "it is ready")
        program.signal(signal.SIGINT)
        assert program.ended() == 130
    finally:
        program.stop()
    assert not program.err


# Starts that fail.


def ended(*arguments: str, cwd: Path, **environ: str) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of stdout, lines of stderr of a command that ends by itself."""
    program = Program(*arguments, env={"XDG_STATE_HOME": str(cwd / "state")} | environ, cwd=cwd)
    code = program.process.wait(PATIENCE)
    program.stop()
    return code, program.out, program.err


def test_without_a_key_it_says_what_to_set(tmp_path: Path) -> None:
    code, out, err = ended("serve", cwd=tmp_path)
    assert (code, out) == (2, [])
    [line] = err
    assert "MISTRAL_API_KEY" in line
    assert "--simulate" in line
    assert not (tmp_path / "state").exists()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = ended("serve", "--simulate", "--port", port, cwd=tmp_path)
        assert (code, out) == (2, [])
        [line] = err
        assert port in line
        assert "in use" in line
        code, out, err = ended("simulate", "--port", port, cwd=tmp_path)
        assert (code, out, len(err)) == (2, [], 1)


def test_a_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a folder")
    code, out, err = ended("serve", "--simulate", "--port", "0", cwd=tmp_path)
    assert (code, out) == (2, [])
    [line] = err
    assert "XDG_STATE_HOME" in line


BAD = """\
server: {prot: 80, drain: soon}
teams:
  a: {keys: ["sk-a-literal-key-0123456789"]}
  b: {keys: ["${NOT_SET}"]}
loging: {}
"""


def test_every_error_of_a_configuration_at_once(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(BAD)
    code, out, err = ended("serve", "--config", "my.yaml", cwd=tmp_path)
    assert (code, out) == (2, [])
    assert [line.split(": ")[:2] for line in err] == [
        ["my.yaml:1", "server.prot"],
        ["my.yaml:1", "server.drain"],
        ["my.yaml:3", "teams.a.keys[0]"],
        ["my.yaml:4", "teams.b.keys[0]"],
        ["my.yaml:5", "loging"],
    ]
    assert "did you mean 'port'?" in err[0]
    assert "NOT_SET" in err[3]
    assert "literal-key" not in "".join(err)
    checked = ended("check", "--config", "my.yaml", cwd=tmp_path)
    assert checked == (1, err, [])


def test_an_option_that_does_not_exist(tmp_path: Path) -> None:
    code, out, err = ended("serve", "--prot", "1", cwd=tmp_path)
    assert (code, out) == (2, [])
    assert "--port" in "".join(err)


# The other commands.


def test_check_of_a_good_configuration(tmp_path: Path) -> None:
    (tmp_path / "proxy.yaml").write_text("teams: {a: {keys: ['sha256:%s']}}" % ("0" * 64))
    code, out, err = ended("check", cwd=tmp_path)
    assert (code, err) == (0, [])
    assert "ok" in out[0]


def test_check_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    code, out, _ = ended("check", "--config", "missing.yaml", cwd=tmp_path)
    assert code == 1
    assert out[0].startswith("missing.yaml: ")


def test_models(tmp_path: Path) -> None:
    code, out, err = ended("models", cwd=tmp_path)
    assert (code, err) == (0, [])
    table = [line.split() for line in out[: out.index("\n")]]
    [small] = [row for row in table if row and "mistral-small-latest" in row[-1].split(",")]
    context, price_in, price_out = small[1:4]
    assert int(context) > 0
    assert 0 < float(price_in) < float(price_out)
    assert ["gpt-4o", "mistral-large-latest"] in [line.split() for line in out[len(table) :]]
    assert table[0][:2] == ["MODEL", "CONTEXT"]


def test_simulate_serves_mistrals_own_client(tmp_path: Path) -> None:
    program = Program("simulate", "--port", "0", cwd=tmp_path)
    try:
        with Mistral(api_key="any", server_url=program.url()) as client:
            messages: Any = [{"role": "user", "content": "Hello!"}]
            answer = client.chat.complete(model="mistral-small-latest", messages=messages)
            pieces = [one.data.choices[0].delta.content for one in client.chat.stream(
                model="mistral-small-latest", messages=messages)]  # fmt: skip
    finally:
        code = program.stop()
    message = answer.choices[0].message
    assert message
    assert message.content == "You said: Hello!" == "".join(str(piece or "") for piece in pieces)
    assert code == 143


def test_version(tmp_path: Path) -> None:
    code, out, _ = ended("--version", cwd=tmp_path)
    assert code == 0
    assert __version__ in out[0]
    assert "mistral-proxy" in out[0]
