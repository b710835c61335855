"""Whose fault each error is, and what a client may do about it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.core import errors
from proxy.core.errors import KEY_REFUSED, Fault, KeyFault, ProxyError, UpstreamRefusal
from proxy.providers.mistral.errors import TABLE
from proxy.providers.openai.error_table import TABLE as OPENAI_TABLE

REPEATED, NOT = True, False

# fmt: off
TREE: dict[type[ProxyError], tuple[Fault, bool]] = {
    errors.ProxyError:           (Fault.PROXY, REPEATED),
    errors.BadRequest:           (Fault.CALLER, NOT),
    errors.BadFraming:           (Fault.CALLER, NOT),
    errors.InvalidJson:          (Fault.CALLER, NOT),
    errors.InvalidEncoding:      (Fault.CALLER, NOT),
    errors.JsonTooDeep:          (Fault.CALLER, NOT),
    errors.JsonTooLarge:         (Fault.CALLER, NOT),
    errors.DuplicateKey:         (Fault.CALLER, NOT),
    errors.NumberOutOfRange:     (Fault.CALLER, NOT),
    errors.InvalidType:          (Fault.CALLER, NOT),
    errors.UnsupportedParameter: (Fault.CALLER, NOT),
    errors.UnsupportedValue:     (Fault.CALLER, NOT),
    errors.MissingParameter:     (Fault.CALLER, NOT),
    errors.InvalidApiKey:        (Fault.CALLER, NOT),
    errors.ModelNotAllowed:      (Fault.POLICY, NOT),
    errors.NotFound:             (Fault.CALLER, NOT),
    errors.UnsupportedEndpoint:  (Fault.CALLER, NOT),
    errors.ModelNotFound:        (Fault.CALLER, NOT),
    errors.UnknownRequest:       (Fault.CALLER, NOT),
    errors.MethodNotAllowed:     (Fault.CALLER, NOT),
    errors.RequestTimeout:       (Fault.CALLER, REPEATED),
    errors.BodyTooLarge:         (Fault.CALLER, NOT),
    errors.UriTooLong:           (Fault.CALLER, NOT),
    errors.UnsupportedMediaType: (Fault.CALLER, NOT),
    errors.HostNotAllowed:       (Fault.POLICY, NOT),
    errors.HeadersTooLarge:      (Fault.CALLER, NOT),
    errors.RateLimited:          (Fault.POLICY, REPEATED),
    errors.InsufficientQuota:    (Fault.POLICY, NOT),
    errors.TooManyAuthFailures:  (Fault.POLICY, NOT),
    errors.ProviderBusy:         (Fault.PROVIDER, REPEATED),
    errors.UpstreamRefusal:      (Fault.PROVIDER, REPEATED),
    errors.UpstreamUnknown:      (Fault.PROVIDER, REPEATED),
    errors.UpstreamFailed:       (Fault.PROVIDER, REPEATED),
    errors.Overloaded:           (Fault.PROXY, REPEATED),
    errors.Draining:             (Fault.PROXY, REPEATED),
    errors.StoreUnavailable:     (Fault.PROXY, REPEATED),
    errors.CircuitOpen:          (Fault.PROVIDER, NOT),
    errors.NotInCache:           (Fault.CALLER, NOT),
    errors.UpstreamTimeout:      (Fault.PROVIDER, REPEATED),
}
# fmt: on

GIVEN: dict[str, Any] = {
    "message": "no", "about": "requests", "wait": 1000, "detail": {}, "seconds": 1.0, "status": 500, "type": "x",
    "code": "x",
}  # fmt: skip


def subclasses(kind: type[ProxyError]) -> Iterator[type[ProxyError]]:
    yield kind
    for one in kind.__subclasses__():
        if one.__module__.startswith("proxy."):
            yield from subclasses(one)


def made(kind: type[ProxyError]) -> ProxyError:
    """One of this kind, with whatever its kind needs to know."""
    parameters = inspect.signature(kind).parameters.values()
    needed = {
        one.name: GIVEN[one.name] for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD
    }
    return kind(**needed)


def test_every_error_is_in_the_table() -> None:
    assert set(TREE) == set(subclasses(ProxyError))


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_an_error_says_whose_fault_it_is_and_whether_to_come_again(kind: type[ProxyError]) -> None:
    error = made(kind)
    assert (error.fault, error.retryable) == TREE[kind]


@pytest.mark.parametrize(
    "error",
    [
        errors.RateLimited("no", about="tokens", wait=None, detail={}),
        errors.InsufficientQuota("no", wait=None, detail={}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_can_never_fit_is_not_worth_another_try(error: ProxyError) -> None:
    assert not error.retryable


@pytest.mark.parametrize("kind", [errors.UpstreamFailed, errors.Overloaded, errors.ProxyError])
def test_what_the_proxy_has_tried_again_itself_is_not_either(kind: type[ProxyError]) -> None:
    error = made(kind)
    error.forbid_retry()
    assert not error.retryable


@pytest.mark.parametrize(
    ("status", "fault"),
    [(400, Fault.CALLER), (404, Fault.CALLER), (422, Fault.CALLER), (429, Fault.PROVIDER), (500, Fault.PROVIDER),
     (503, Fault.PROVIDER)],
)  # fmt: skip
def test_a_refusal_is_the_callers_unless_the_provider_could_not(status: int, fault: Fault) -> None:
    assert UpstreamRefusal("no", status=status, type="x", code="y").fault is fault


def test_a_key_of_ours_that_pays_for_nothing_is_ours_to_see_to() -> None:
    error = UpstreamRefusal("no", status=401, type="x", code="y")
    faults = []
    for error.key in (KeyFault.REFUSED, KeyFault.SPENT):
        faults.append(error.fault)
    assert faults == [Fault.PROXY, Fault.CALLER]
    assert errors.UpstreamFailed("no", code=KEY_REFUSED).fault is Fault.PROXY


@pytest.mark.parametrize("row", [*TABLE, *OPENAI_TABLE], ids=lambda row: f"{row.code} {row.text or row.marks}")
def test_no_row_of_a_providers_table_has_a_code_of_the_providers(row: Any) -> None:
    """Codes are values of a label: a closed set, whatever a provider sends."""
    assert row.code is None or isinstance(row.code, str)


def test_faults_are_the_closed_list() -> None:
    assert [fault.value for fault in Fault] == ["caller", "policy", "provider", "proxy", "network"]
