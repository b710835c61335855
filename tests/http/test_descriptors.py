from __future__ import annotations

import resource

import pytest

from proxy.http import descriptors


@pytest.mark.parametrize("count", [0, 64, 100, 256, 1024, 20_000, 1 << 20])
def test_a22_everybody_has_room(count: int) -> None:
    """Each connection that is answered may need a second descriptor; those that are told off need only their own."""
    limits = descriptors.limits_within(count)
    assert 0 < limits.connections < limits.most_connections
    assert limits.most_connections + limits.connections + descriptors.RESERVE <= max(count, descriptors.RESERVE + 5)


def test_a22_the_soft_limit_becomes_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    assert descriptors.raised() == 4096
    assert asked == [(4096, 4096)]


def test_a22_or_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert descriptors.raised() == 256


@pytest.mark.parametrize("limit", [resource.RLIM_INFINITY, 1 << 30])
def test_a22_without_a_limit_there_is_one(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)
    assert descriptors.raised() == 1 << 20
