"""Every piece of the benchmark with tiny counts: that it counts right, never that anything is fast."""

import asyncio
import mmap
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from bench import guard, instructions, reload, report, stages
from bench.load import Route, TargetFailedError, burst, connections, once, open_streams, take_turns
from bench.measure import Cores, Processes, clock_id, on_cores
from bench.report import figure, guard_table, headroom, markdown, table, text, warnings
from bench.rounds import BurstRecord, Results, Rounds, probe, start_round, upstream_counts
from bench.targets import TARGETS, Place, Running, Target, free_port, running, upstream
from bench.traffic import ANSWER, EVENTS, HALF, PLANS, STREAM, STREAM_EVENTS, json_response, request_body
from bench.upstream import Counts, State, UpstreamProtocol

ROOT = Path(__file__).parent.parent
CORES = Cores(frozenset(os.sched_getaffinity(0)), frozenset(os.sched_getaffinity(0)))


@pytest.fixture
def anyio_backend():
    return "asyncio", {"use_uvloop": True}


@asynccontextmanager
async def listening(protocol):
    """A server in this process, as a Route."""
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    async with server:
        yield Route(server.sockets[0].getsockname()[1])


@pytest.fixture
async def straight():
    """The bench's upstream in this process."""
    state = State()
    async with listening(lambda: UpstreamProtocol(state)) as route:
        yield route


class Canned(asyncio.Protocol):
    """A target that sends the same bytes for every request, then hangs up if told to."""

    def __init__(self, answer, hang_up=False):
        self.answer, self.hang_up = answer, hang_up

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(self.answer)
        if self.hang_up:
            self.transport.close()


# --- traffic


def test_the_traffic_has_the_sizes_the_documentation_names():
    assert 400 <= len(request_body()) <= 500
    assert 500 <= len(ANSWER) <= 650
    assert len(STREAM_EVENTS) == EVENTS == STREAM.count(b'"chat.completion.chunk"') == 50
    assert STREAM.endswith(b"data: [DONE]\n\n")
    assert b'"usage"' in STREAM_EVENTS[-1]
    assert not any(b'"usage"' in event for event in STREAM_EVENTS[:-1])
    assert all(b'"p":' in event for event in STREAM_EVENTS[1:])


def test_every_event_is_json():
    *events, done, nothing = STREAM.split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    chunks = [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (EVENTS - 1) + ["stop"]


# --- upstream and load


async def test_a_burst_counts_what_the_upstream_counted(straight):
    async with connections(straight, 4) as calls:
        seen = await burst(calls, straight.chat(request_body()), 41)
    assert (seen.answers, seen.failures, seen.chunks, seen.sizes) == (41, 0, 41, {len(ANSWER)})
    assert await upstream_counts(straight) == Counts(json=41, streams=0, held=0)


async def test_a_burst_of_streams_sees_every_event_alone(straight):
    async with connections(straight, 3) as calls:
        seen = await burst(calls, straight.chat(request_body("paced")), 7)
    assert (seen.answers, seen.failures, seen.chunks, seen.sizes) == (7, 0, 7 * EVENTS, {len(STREAM)})
    assert await upstream_counts(straight) == Counts(json=0, streams=7, held=0)


@pytest.mark.parametrize("plan", ["paced", "first"])
async def test_the_plans_differ_in_time_and_not_in_bytes(straight, plan):
    reply = await once(straight, straight.chat(request_body(plan)))
    assert (reply.status, reply.body, reply.chunks) == (200, STREAM, len(PLANS[plan]))


@pytest.mark.parametrize("space", [b"", b" "])
async def test_the_upstream_reads_json_however_it_is_spaced(straight, space):
    body = request_body("first").replace(b'":', b'":' + space)
    assert (await once(straight, straight.chat(body))).body == STREAM
    assert (await once(straight, straight.chat(request_body()))).body == ANSWER


async def test_the_upstream_does_not_know_other_paths(straight):
    assert (await once(straight, straight.request("/v1/models"))).status == 404


async def test_a_failed_answer_and_a_hang_up_are_failures():
    async with (
        listening(lambda: Canned(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno")) as route,
        connections(route, 2) as calls,
    ):
        seen = await burst(calls, route.chat(b"{}"), 6)
    assert (seen.answers, seen.failures) == (6, 6)
    async with (
        listening(lambda: Canned(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", hang_up=True)) as route,
        connections(route, 2) as calls,
    ):
        seen = await burst(calls, route.chat(b"{}"), 6)
    assert (seen.answers, seen.failures) == (0, 2)


async def test_turns_are_taken_one_by_one(straight):
    request = straight.chat(request_body("first"))
    times = await take_turns({"a": (straight, request), "b": (straight, request)}, 3)
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}
    assert all(0 < timing.first < timing.whole for taken in times.values() for timing in taken)
    assert (await upstream_counts(straight)).streams == 6


async def test_a_turn_that_fails_ends_the_measurement():
    async with listening(lambda: Canned(b"HTTP/1.1 429 No\r\ncontent-length: 0\r\n\r\n")) as route:
        with pytest.raises(TargetFailedError, match="slow answered 429"):
            await take_turns({"slow": (route, route.chat(b"{}"))}, 1)


async def test_held_streams_stand_open_until_they_are_released(straight):
    async with open_streams(straight, straight.chat(request_body("held")), 5) as held:
        await held.received(HALF)
        assert [call.reply.size for call in held.calls] == [HALF] * 5
        assert not any(future.done() for future in held.futures)
        assert (await upstream_counts(straight)).held == 5
        await upstream_counts(straight, "/release")
        assert await held.identical(STREAM) == 5
    assert all(call.reply.body == STREAM for call in held.calls)


async def test_a_changed_byte_is_not_identical():
    answers = iter([STREAM, STREAM.replace(b"word7", b"word8", 1), STREAM[:-1]])
    async with (
        listening(lambda: Canned(json_response(next(answers)))) as route,
        open_streams(route, route.chat(b"{}"), 3) as held,
    ):
        assert await held.identical(STREAM) == 1


async def test_a_stream_that_ends_early_is_told():
    async with (
        listening(lambda: Canned(json_response(b"short"))) as route,
        open_streams(route, route.chat(b"{}"), 2) as held,
    ):
        await asyncio.wait(held.futures)
        with pytest.raises(TargetFailedError, match="2 of 2 streams ended before half"):
            await held.received(HALF)


# --- measure


def test_the_clock_of_a_process_is_its_cpu_time():
    # In a process of its own: the clock that others see may leave out threads that have ended, and a test run has many.
    code = "import os, time; from bench.measure import Processes; mine = Processes.of(os.getpid())\n"
    code += "print(time.process_time(), mine.cpu(), time.process_time(), mine.waited())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, middle, after, waited = map(float, said.split())
    assert before <= middle <= after
    assert waited >= 0


def test_memory_is_counted_in_bytes():
    mine, size = Processes.of(os.getpid()), 50_000_000
    before = mine.rss()
    with mmap.mmap(-1, size) as ballast:  # from the kernel: an allocator may have so much of its own
        for page in range(0, size, mmap.PAGESIZE):
            ballast[page] = 1
        assert 0.8 * size < mine.rss() - before < 1.2 * size


def test_a_process_that_is_gone_has_no_clock():
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with pytest.raises(OSError, match="process"):
        clock_id(gone.pid)


def test_children_inherit_the_cores_of_the_block():
    before = os.sched_getaffinity(0)
    one = frozenset([min(before)])
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    with on_cores(one):
        seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == str(sorted(one))
    assert os.sched_getaffinity(0) == before


# --- targets and rounds


async def test_the_forwarder_is_measured_side_by_side_with_itself(tmp_path):
    results = Results()
    async with running(upstream(free_port(), tmp_path), CORES.others) as straight:
        port = straight.target.route.port
        target = TARGETS["forwarder"](Place(free_port(), port, tmp_path, connections=10))
        await start_round(target, straight.target.route, 4, CORES, results)
        async with running(target, CORES.target) as up:
            await probe(target)
            rounds = Rounds(straight, [up], results)
            await rounds.warm_up(2)
            await rounds.bursts(0, "json", 20)
            await rounds.bursts(0, "traced", 18)
            await rounds.bursts(0, "stream", 17)
            await rounds.latency(0, 3)
            await rounds.first_event(0, 2)
        counts = await upstream_counts(straight.target.route)
    assert results.wrong == []
    # probe 1, warm-up 2, and per burst 16 first answers and the counted ones, straight and through the target
    assert counts.json == 1 + 2 + 2 + 2 * (16 + 20) + 2 * (16 + 18) + 2 * 3
    assert counts.streams == 4 + 1 + 2 + 2 * (16 + 17) + 2 * 2
    assert {(b.target, b.kind) for b in results.bursts} == {
        (name, kind) for name in ("direct", "forwarder") for kind in ("json", "traced", "stream")
    }
    assert all(measure.key in results.samples for measure in report.MEASURES)
    assert results.samples["streams_identical"]["forwarder"] == [4]
    assert all(min(b.rate, b.load_share, b.upstream_share) > 0 for b in results.bursts)
    assert all((b.cpu_us > 0) == (b.target == "forwarder") for b in results.bursts)


async def test_a_target_that_caches_is_found_out(tmp_path):
    results = Results()
    async with (
        running(upstream(free_port(), tmp_path), CORES.others) as straight,
        listening(lambda: Canned(json_response(ANSWER))) as route,
    ):
        caching = Running(Target("caching", (), route, tmp_path / "log"), straight.processes, 0.0)
        await Rounds(straight, [caching], results).bursts(0, "json", 5)
    assert results.wrong == ["caching, json burst: the upstream saw 0 of 21 requests"]


async def test_a_target_that_changes_the_stream_is_refused(tmp_path):
    async with listening(lambda: Canned(json_response(ANSWER))) as route:
        with pytest.raises(TargetFailedError, match="the stream is not the upstream's: status 200"):
            await probe(Target("wrong", (), route, tmp_path / "log"))


async def test_a_target_that_does_not_start_shows_its_last_words(tmp_path):
    command = (sys.executable, "-c", "raise SystemExit('no such config')")
    target = Target("broken", command, Route(free_port()), tmp_path / "log")
    with pytest.raises(TargetFailedError, match=r"broken did not become ready \(exit 1\):\nno such config"):
        async with running(target, CORES.target):
            pass


def test_the_proxy_is_started_with_keys_from_the_environment_only(tmp_path):
    target = TARGETS["mistral-proxy"](Place(18080, 19000, tmp_path, 1000))
    config = (tmp_path / "proxy.yaml").read_text()
    secret = target.environment["BENCH_TEAM_KEY"]
    assert target.route.headers == {"authorization": f"Bearer {secret}"}
    assert secret not in config
    assert msgspec.yaml.decode(config)["providers"]["mistral"]["base_url"] == "http://127.0.0.1:19000"


# --- report


def burst_record(target, kind="json", **changes):
    usual = {"round": 0, "rate": 1000.0, "cpu_us": 1.0, "target_share": 1.0, "waited_share": 0.0}
    usual |= {"load_share": 0.1, "upstream_share": 0.1, "chunks": 1.0 if kind == "json" else 50.0}
    return BurstRecord(target=target, kind=kind, **usual | changes)


def test_medians_are_over_rounds_and_ratios_within_them():
    found = figure([20.0, 60.0, 33.0], [10.0, 20.0, 30.0])
    assert found.value == (33.0, 26.5, 46.5)
    assert found.ratio == pytest.approx((2.0, 1.55, 2.5))


def test_the_table_puts_ratio_and_goal_beside_each_target():
    results = Results()
    for name, values in {"base": [100.0, 200.0, 100.0], "ours": [130.0, 260.0, 130.0], "slow": [900.0] * 3}.items():
        for value in values:
            results.add("json_cpu_us", name, value)
    assert table(results, ["base", "ours", "slow"]) == [
        ["", "base", "ours", "ratio", "goal", "slow", "ratio", "goal"],
        [
            "CPU per JSON request, µs",
            *("100 (100–150)", "130 (130–195)", "1.30", "≤ 1.8× met"),
            *("900", "9.00 (6.75–9.00)", "≤ 1.8× MISSED"),
        ],
    ]


def test_cells_as_text_and_as_markdown():
    rows = [["", "a"], ["row", "1,000"]]
    assert text(rows) == "         a\nrow  1,000"
    assert markdown(rows) == "|  | a |\n| --- | --: |\n| row | 1,000 |"


def test_headroom_is_the_direct_rate_over_the_targets():
    results = Results(bursts=[burst_record("direct", rate=8000.0, target_share=0.0), burst_record("ours")])
    assert headroom(results, ["ours"])[2] == ["json ours", "1,000", "8.0", "100%", "0%", "20%", "1.0"]
    assert list(warnings(results, ["ours"])) == []


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("json", {"target_share": 0.8}, "not saturated (it used 80% of its core)"),
        ("json", {"target_share": 0.9, "waited_share": 0.1}, "other programs took the target's core for 10%"),
        ("json", {"load_share": 0.8}, "load and upstream used 90% of their core"),
        ("stream", {"chunks": 30.0}, "events were read together (30.0 chunks for 50)"),
    ],
)
def test_what_weakens_a_figure_is_said(kind, changes, said):
    results = Results(bursts=[burst_record("ours", kind, **changes)])
    [warning] = warnings(results, ["ours"])
    assert said in warning


# --- guard


@pytest.mark.parametrize("size", guard.SIZES.values())
def test_the_guards_bodies_have_the_sizes_they_are_named_by(size):
    made = guard.body(size)
    assert abs(len(made) - size) < 110
    assert msgspec.json.decode(made)["messages"][-1]["content"]


async def test_both_protocols_serve_the_same_bytes():
    for kind in guard.PROTOCOLS.values():
        assert await guard.serve(kind, guard.request(guard.body(600)), 5) > 0


async def test_a_protocol_that_refuses_is_not_measured():
    with pytest.raises(RuntimeError, match="HttpToolsProtocol does not answer"):
        await guard.serve(guard.PROTOCOLS["plain"], b"GET / HTTP/1.1\r\n", 1)


async def test_the_row_with_the_goal_is_the_sum_of_protocol_and_parse(monkeypatch):
    monkeypatch.setattr(guard, "_BYTES_A_ROUND", 1)
    samples = guard.nothing()
    await guard.one_round(samples, 0)
    parts = ("protocol, request of 600 B", "parse, body of 600 B")
    for side in ("plain", "ours"):
        assert samples[guard.WHOLE][side] == [sum(samples[part][side][0] for part in parts)]


def test_what_the_guard_adds_is_a_difference_within_the_round():
    samples = {guard.WHOLE: {"plain": [10.0, 20.0, 30.0], "ours": [14.0, 24.0, 94.0]}}
    assert guard_table(samples)[1:] == [
        [guard.WHOLE, "20.0 (15.0–25.0)", "24.0 (19.0–59.0)", "1.40 (1.30–2.27)", "4.0 (4.0–34.0)", "≤ 10 met"]
    ]


# --- the whole


def test_a_whole_run_prints_a_table_and_writes_its_figures(tmp_path):
    counts = {"rounds": 2, "starts": 1, "requests": 20, "streams": 16, "turns": 5, "open-streams": 3, "guard-rounds": 1}
    small = [f"--{name}={count}" for name, count in counts.items()]
    command = [
        sys.executable,
        "-m",
        "bench.run",
        "--targets",
        "forwarder,forwarder-again",
        "--out",
        str(tmp_path),
        "--markdown",
        *small,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    [written] = tmp_path.glob("*.json")
    found = msgspec.json.decode(written.read_bytes())
    assert found["settings"]["requests"] == 20
    assert found["wrong"] == []
    assert len(found["bursts"]) == 2 * 3 * 3
    assert {len(row) for key in ("json_cpu_us", "latency_us") for row in found["samples"][key].values()} == {2}
    assert found["figures"]["json_cpu_us"]["forwarder"]["ratio"]["median"] == 1.0
    assert found["figures"]["json_cpu_us"]["forwarder-again"]["value"]["median"] > 0
    assert "| open streams that ended with identical bytes | 3 | 3 | 1.00 |  |" in done.stdout
    assert f"| {guard.WHOLE} |" in done.stdout


def test_an_unknown_target_is_refused():
    command = [sys.executable, "-m", "bench.run", "--targets", "nginx"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2
    assert "no such target: nginx (there are forwarder, mistral-proxy, without-counts, forwarder-again)" in done.stderr


@pytest.mark.parametrize(
    ("program", "lines"),
    [
        ("quota", ["memory"]),
        ("breaker", ["all is well", "two circuits open"]),
        ("watching", ["logs and metrics", "the same of 50 events"]),
    ],
)
def test_what_stages_add_is_put_beside_the_forwarder(program, lines):
    command = [sys.executable, "-m", f"bench.{program}", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    figures = r"-?[\d.]+ CPU µs added to a request, -?\d\.\d\d of the bare forwarder's \d+; .+"
    assert re.fullmatch("".join(f"{line}: {figures}\n" for line in lines), done.stdout)


def test_a_hit_and_a_miss_are_put_beside_the_forwarder():
    command = [sys.executable, "-m", "bench.cache", "1", "100"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *found, miss = done.stdout.splitlines()
    assert len(found) == 3
    figure = r"-?[\d.]+ CPU µs"
    for line in found:
        hit = rf"hit, [\w, -]+: {figure}, \d\.\d\d of the bare forwarder's \d+; asked ≤ 0.5: (met|MISSED); .+ not asked"
        assert re.fullmatch(hit, line), line
    assert re.fullmatch(rf"miss: {figure} added, .+: (met|MISSED)", miss), miss


def test_a_goal_of_another_machine_is_one_in_proportion():
    slow = [stages.Round(forwarder=238.0, plain=5.0, staged=added + 5.0) for added in (40.0, 48.0, 60.0)]
    assert stages.summary("memory", 25, slow) == (
        "memory: 48.0 (44.0–54.0) CPU µs added to a request, 0.20 of the bare forwarder's 238; "
        "asked ≤ 0.21 (25 of 119): met"
    )
    fast = [stages.Round(forwarder=59.5, plain=1.0, staged=25.0)] * 2
    assert stages.summary("memory", 25, fast).endswith("MISSED")


async def test_a_reload_is_seen_on_every_worker() -> None:
    for workers in (1, 2):
        found = await reload.seconds(workers, 2)
        assert len(found) == 2
        assert all(one > 0 for one in found)


def test_a_profile_has_its_total() -> None:
    assert instructions.total("events: Ir\n\nfn=(1) f\n0 12\n\ntotals: 686624195\n") == 686_624_195
    with pytest.raises(ValueError, match="no totals"):
        instructions.total("events: Ir\n")


@pytest.mark.parametrize("name", ["forwarder", "mistral-proxy"])
def test_what_is_counted_is_the_target_itself(tmp_path: Path, name: str) -> None:
    target = TARGETS[name](Place(8080, 9000, tmp_path, 100))
    counted = instructions.under_callgrind(target, tmp_path / "profile")
    at = counted.command.index(sys.executable)
    assert counted.command[0] == "valgrind"
    assert counted.command[at:][-len(target.command) :] == target.command
    assert counted.route == target.route


def test_each_trace_is_another_and_nothing_else_is() -> None:
    ask = Route(80).traced(b"{}")
    asked = [ask() for _ in range(3)]
    traces = [re.findall(rb"\r\ntraceparent: (00-[0-9a-f]{32}-[0-9a-f]{16}-00)\r\n", one) for one in asked]
    assert len({one for [one] in traces}) == 3
    assert len({one.replace(trace, b"") for one, [trace] in zip(asked, traces, strict=True)}) == 1
    assert asked[0].endswith(b"\r\n\r\n{}")
