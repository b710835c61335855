"""What is measured: one row for each metric. docs/metrics.md says what each is for; a test keeps the two together.

Label values come from closed sets: teams, rules, providers and models of the configuration and the catalogue, endpoints
of the route table, words of ours. Text of a client's is never one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from proxy.core import gaps
from proxy.core.money import NANO


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Over(Enum):
    """What a gauge of several workers is together."""

    SUM = "sum"
    MOST = "max"
    LEAST = "min"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. Values are whole numbers, of which `unit` are one of what is told: nanoseconds for seconds, nano-USD
    for USD. `bounds` are the upper ends of a histogram's buckets, in seconds. `over` is for gauges."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    unit: int = 1
    bounds: tuple[float, ...] = ()
    over: Over = Over.SUM

    @property
    def cells(self) -> int:
        """How many numbers one series is. A histogram is its sum, then each bucket, then what is above all of them."""
        return len(self.bounds) + 2 if self.kind is Kind.HISTOGRAM else 1


def _counter(name: str, labels: str, help: str, unit: int = 1) -> Family:
    return Family(name, Kind.COUNTER, tuple(labels.split()), help, unit)


def _gauge(name: str, labels: str, help: str, over: Over = Over.SUM, unit: int = 1) -> Family:
    return Family(name, Kind.GAUGE, tuple(labels.split()), help, unit, over=over)


def _seconds(name: str, labels: str, bounds: tuple[float, ...], help: str) -> Family:
    return Family(name, Kind.HISTOGRAM, tuple(labels.split()), help, NANO, bounds)


_OF_REQUESTS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_OF_FIRST_TOKENS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_OF_OVERHEAD: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0)

# What requests come to.

REQUESTS: Final = _counter(
    "mistral_requests_total",
    "service method status model",
    "Requests that have ended, by provider, operation, class of the status and model.",
)
TOKENS: Final = _counter(
    "mistral_tokens_total", "service direction model", "Tokens charged, as the ledger has them; input or output."
)
ERRORS: Final = _counter(
    "mistral_errors_total",
    "service error_type retryable",
    "Requests that ended with an error, by its code and whether the client may send the request again.",
)
RETRIES: Final = _counter(
    "mistral_retries_total", "service attempt_number", "Calls to a provider made again, by the number of the attempt."
)
DURATION: Final = _seconds(
    "mistral_request_duration_seconds",
    "service method status",
    _OF_REQUESTS,
    "From the head of the request to the last byte of the answer.",
)
FIRST_TOKEN: Final = _seconds(
    "mistral_time_to_first_token_seconds",
    "model",
    _OF_FIRST_TOKENS,
    "From the head of the request to the first byte of a stream that a provider was asked for.",
)
TEAM_REQUESTS: Final = _counter(
    "mistral_proxy_requests_total",
    "team endpoint status",
    "Requests that have ended, by team, endpoint and status class.",
)
FAULTS: Final = _counter(
    "mistral_proxy_faults_total",
    "team fault",
    "Requests that failed, by whose fault it was: caller, policy, provider, proxy or network.",
)
COST: Final = _counter("mistral_proxy_cost_usd_total", "team model", "USD charged, as the ledger has them.", NANO)
CACHE: Final = _counter(
    "mistral_proxy_cache_requests_total", "team outcome", "What the cache did: hit, miss, bypass, joined or stale."
)
SAVED: Final = _counter(
    "mistral_proxy_cache_saved_usd_total",
    "team model",
    "USD that answers from the cache had cost when they were made.",
    NANO,
)
REFUSALS: Final = _counter(
    "mistral_proxy_quota_refusals_total",
    "team rule mode",
    "Requests that a quota refused, or would have refused: enforce or shadow.",
)
OVERHEAD: Final = _seconds(
    "mistral_proxy_overhead_seconds",
    "stage",
    _OF_OVERHEAD,
    "Time of the proxy's own before the first byte of an answer, waits for client and provider left out.",
)
GAPS: Final = _seconds(
    "mistral_proxy_stream_gap_seconds",
    "service",
    gaps.BOUNDS,
    "From one piece of a stream to the next, as clients get them.",
)
CANCELS: Final = _counter(
    "mistral_proxy_upstream_cancels_total",
    "service",
    "Calls to a provider that were ended because their client had left.",
)

# How things are.

STREAMS: Final = _gauge("mistral_active_streams", "", "Streams that are being sent.")
IN_FLIGHT: Final = _gauge("mistral_proxy_requests_in_flight", "", "Requests that are being served.")
CIRCUIT: Final = _gauge(
    "mistral_circuit_breaker_state",
    "service",
    "The worst circuit of a provider: 0 closed, 1 half open, 2 open.",
    Over.MOST,
)
KEYS: Final = _gauge(
    "mistral_proxy_provider_key_usable", "service key", "Whether a key of a provider may be used: 1 or 0.", Over.LEAST
)
LEFT: Final = _gauge(
    "mistral_rate_limit_remaining",
    "limit_type",
    "What is left under the quota of this kind that has the smallest part left, of all teams.",
)
QUOTA_USED: Final = _gauge("mistral_proxy_quota_used", "team rule", "What a team has used of a quota.")
QUOTA_RESERVED: Final = _gauge(
    "mistral_proxy_quota_reserved", "team rule", "What requests under way may still use of a quota."
)
QUOTA_LIMIT: Final = _gauge("mistral_proxy_quota_limit", "team rule", "What a quota allows.")
UPSTREAM: Final = _gauge(
    "mistral_proxy_upstream_connections", "service state", "Open connections to a provider, in_use or idle."
)
TASKS: Final = _gauge("mistral_proxy_tasks", "", "Tasks of the event loops.")
LEDGER: Final = _gauge("mistral_proxy_ledger_waiting", "", "Entries of the ledger that its database does not have yet.")
WORKERS: Final = _gauge("mistral_proxy_workers", "", "Workers that are alive.")
BUILD: Final = _gauge("mistral_proxy_build_info", "version python", "Always 1.")
CONFIG: Final = _gauge("mistral_proxy_config_info", "config generation", "The configuration in force; always 1.")

# What was lost, of all that is worth less than a request.

LOG_LOST: Final = _counter("mistral_proxy_log_lines_lost_total", "", "Log lines that nobody read in time.")
SPANS_LOST: Final = _counter("mistral_proxy_spans_lost_total", "", "Spans that no collector took.")
SERIES_LOST: Final = _counter("mistral_proxy_series_lost_total", "", "Series for which there was no room.")

FAMILIES: Final = (
    REQUESTS, TOKENS, ERRORS, RETRIES, DURATION, FIRST_TOKEN, TEAM_REQUESTS, FAULTS, COST, CACHE, SAVED, REFUSALS,
    OVERHEAD, GAPS, CANCELS, STREAMS, IN_FLIGHT, CIRCUIT, KEYS, LEFT, QUOTA_USED, QUOTA_RESERVED, QUOTA_LIMIT,
    UPSTREAM, TASKS, LEDGER, WORKERS, BUILD, CONFIG, LOG_LOST, SPANS_LOST, SERIES_LOST,
)  # fmt: skip
"""In the order in which they are told."""
