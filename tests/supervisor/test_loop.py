"""The supervisor with real processes."""

from __future__ import annotations

import os
import signal
import socket

import psutil
import pytest

from tests.programs import PATIENCE, until
from tests.supervisor.conftest import Start, Supervised

SECRET = "a secret"


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# Life.


@pytest.mark.parametrize("workers", [2, 4])
def test_every_worker_serves_and_they_are_announced_once(start: Start, workers: int) -> None:
    one = start(workers)
    answers = one.all(workers)
    assert sorted(answers) == list(range(1, workers + 1))
    assert sorted(answer.pid for answer in answers.values()) == sorted(one.pids())
    assert {(answer.generation, answer.sources) for answer in answers.values()} == {(1, "one")}
    assert one.end() == 0
    assert one.program.everything().count("ready on") == 1
    assert one.line("over")["signal"] == "SIGTERM"
    assert not one.program.err


def test_a_worker_that_dies_is_replaced_while_the_others_serve(start: Start) -> None:
    """K8: again and again, and nothing is left behind in the supervisor."""
    one = start()
    supervisor = psutil.Process(one.program.process.pid)
    before = one.all()
    open_files = supervisor.num_fds()
    for round in range(4):
        victim = before[1 + round % 2]
        os.kill(victim.pid, signal.SIGKILL)
        one.line("worker_died", pid=victim.pid, signal="SIGKILL", worker=victim.number)
        assert one.ask().pid != victim.pid
        after = one.all()
        assert after[victim.number].pid != victim.pid
        assert after[3 - victim.number] == before[3 - victim.number]
        before = after
    until(lambda: supervisor.num_fds() == open_files, "as many open files as before")
    assert len(one.pids()) == 2
    assert [line["next_in_s"] for line in one.logged("worker_died", worker=1)] == [0.1, 0.2]
    assert one.end() == 0
    assert one.program.everything().count("ready on") == 1


def test_a_worker_that_ends_without_being_told_to_is_replaced(start: Start) -> None:
    one = start()
    before = one.all()
    os.kill(before[1].pid, signal.SIGTERM)
    assert one.all(accept=lambda answer: answer.pid != before[1].pid)[2] == before[2]


def test_a_terminals_signals_are_left_to_the_supervisor(start: Start) -> None:
    one = start()
    before = one.all()
    for answer in before.values():
        os.kill(answer.pid, signal.SIGINT)
        os.kill(answer.pid, signal.SIGHUP)
    assert one.all() == before
    assert not one.logged("worker_died")


# Reload.


def test_new_sources_reach_every_worker_with_the_same_number(start: Start) -> None:
    one = start()
    one.all()
    for generation, sources in ((2, "two"), (3, "three" * 100_000)):
        one.serve(sources)
        one.line("reloaded_everywhere", generation=generation, workers=2)
        assert {(found.generation, found.sources) for found in one.all().values()} == {(generation, sources)}


def test_sources_that_are_refused_change_nothing(start: Start) -> None:
    one = start()
    before = one.all()
    one.serve("broken")
    one.program.signal(signal.SIGHUP)
    one.line("asked")
    assert one.all() == before


def test_a_fault_in_looking_ends_nothing(start: Start) -> None:
    one = start()
    before = one.all()
    one.serve("a fault")
    assert one.line("unexpected", kind="RuntimeError")["place"].startswith("Configuration.look:")
    assert one.all() == before
    one.serve("two")
    assert one.all(accept=lambda answer: answer.generation == 2)
    assert SECRET not in one.program.everything()


def test_a_stopped_worker_holds_nobody_up_and_catches_up(start: Start) -> None:
    one = start()
    pid = one.all()[1].pid
    os.kill(pid, signal.SIGSTOP)
    for generation in range(2, 6):
        sources = f"{generation}" * 1_000_000
        one.serve(sources)

        def newest(sources: str = sources) -> bool:
            """An answer of the other worker, however many connections wait for the stopped one."""
            sock = one.connect()
            sock.settimeout(0.5)
            try:
                return sock.makefile().readline().endswith(f'"{sources}"]\n')
            except TimeoutError:
                return False

        until(newest, "the other worker serves the new sources")
    assert not one.logged("reloaded_everywhere")
    os.kill(pid, signal.SIGCONT)
    one.line("reloaded_everywhere", generation=5)
    assert one.all(accept=lambda answer: answer.generation == 5)[1].pid == pid


def test_the_next_worker_begins_with_what_is_served_now(start: Start) -> None:
    one = start()
    pid = one.all()[1].pid
    one.serve("two")
    one.line("reloaded_everywhere", generation=2)
    os.kill(pid, signal.SIGKILL)
    answer = one.all(accept=lambda answer: answer.pid != pid)[1]
    assert (answer.generation, answer.sources) == (2, "two")


def test_who_cannot_follow_is_replaced_by_one_who_begins_with_it(start: Start) -> None:
    one = start()
    before = {answer.pid for answer in one.all().values()}
    one.leave()
    one.serve("sour")
    one.line("worker_refused", worker=1, generation=2)
    after = one.all(accept=lambda answer: answer.pid not in before)
    assert {(answer.generation, answer.sources) for answer in after.values()} == {(2, "sour")}


# Starts that fail.


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise", "no worker: ValueError at main.<locals>.work:"),
        ("refuse", "no worker: There is nothing to serve."),
        ("exit", "no worker: SystemExit at main.<locals>.work:"),
    ],
)
def test_k9_a_start_that_fails_everywhere_ends_with_the_reason(start: Start, what: str, reason: str) -> None:
    one = start.failing(what)
    assert one.program.process.wait(PATIENCE) == 1
    one.program.stop()
    assert reason in one.program.everything()
    assert "ready on" not in one.program.everything()
    assert SECRET not in one.program.everything()
    assert len(one.logged("worker_died")) == 2


def test_k9_a_worker_that_never_gets_ready_is_not_waited_for(start: Start) -> None:
    one = start.failing("hang", ready="0.2")
    assert one.program.process.wait(PATIENCE) == 1
    one.program.stop()
    assert "no worker: it was not ready in time" in one.program.everything()


def test_k9_a_crash_loop_later_backs_off_and_whoever_connects_is_turned_away(start: Start) -> None:
    one = start(again="0.02", wait="0.1")
    before = one.all()
    one.leave()
    (one.folder / "raise").touch()
    for answer in before.values():
        os.kill(answer.pid, signal.SIGKILL)
    one.line("worker_died", worker=1, next_in_s=0.64, crash_loop=True)
    one.line("worker_died", worker=2, next_in_s=0.64, crash_loop=True)
    assert one.connect().makefile().read() == "nobody for 127.0.0.1\n"
    assert [line["next_in_s"] for line in one.logged("worker_died", worker=2)] == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64]
    (one.folder / "raise").unlink()
    after = one.all()
    assert not {answer.pid for answer in after.values()} & {answer.pid for answer in before.values()}
    assert SECRET not in one.program.everything()
    assert one.end() == 0


# The end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_waits_for_what_is_open_and_takes_nothing_new(start: Start, number: signal.Signals) -> None:
    one = start()
    one.all()
    kept = one.connect()
    until(lambda: len(one._open) and kept.recv(1, socket.MSG_PEEK), "the connection is served")
    one._open.remove(kept)
    one.leave()
    one.program.signal(number)
    one.line("drain", worker=1)
    one.line("drain", worker=2)
    until(lambda: refused(one), "nobody new is let in")
    assert one.program.process.poll() is None
    kept.close()
    assert one.program.process.wait(PATIENCE) == 0
    assert one.line("over")["signal"] == number.name
    assert not one.logged("worker_died")


def refused(one: Supervised) -> bool:
    try:
        one.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_second_signal_does_not_wait(start: Start) -> None:
    one = start()
    answers = one.all()
    one.program.signal(signal.SIGTERM)
    one.line("drain", worker=1)
    one.program.signal(signal.SIGTERM)
    assert one.program.process.wait(PATIENCE) == 0
    assert all(ended(answer.pid) for answer in answers.values())
    assert one.logged("end")


def test_who_does_not_end_is_ended(start: Start) -> None:
    one = start(last="0.1")
    pid = one.all()[1].pid
    os.kill(pid, signal.SIGSTOP)
    assert one.end() == 0
    [line] = one.logged("worker_died")
    assert (line["pid"], line["signal"], line["reason"]) == (pid, "SIGKILL", "it did not end in time")
    assert ended(pid)


def test_a_reload_during_the_drain_is_ignored(start: Start) -> None:
    one = start()
    one.all()
    one.program.signal(signal.SIGTERM)
    one.line("drain", worker=1)
    one.program.signal(signal.SIGHUP)
    one.line("reload_ignored", level="info", what="the proxy is shutting down")
    assert one.end() == 0


@pytest.mark.parametrize("listening", [True, False])
def test_without_a_supervisor_workers_end_by_themselves(start: Start, listening: bool) -> None:
    """Those that read what they are told learn it there; one that has not come so far, from the system."""
    one = start() if listening else start.failing("hang")
    if listening:
        one.all()
        one.leave()
    pids: list[int] = until(lambda: len(one.pids()) == 2 and one.pids(), "two workers")
    one.program.process.kill()
    until(lambda: all(map(ended, pids)), "the workers end")
    if listening:
        assert refused(one)
