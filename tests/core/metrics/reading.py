"""A page as Prometheus's own parser reads it."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from proxy.core.metrics.families import Family


def read(page: bytes) -> dict[str, Metric]:
    """By the name in its TYPE line."""
    found: dict[str, Metric] = {}
    for metric in text_string_to_metric_families(page.decode()):
        name = metric.name + ("_total" if metric.type == "counter" else "")
        assert name not in found, f"{name} is there twice"
        series = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in metric.samples]
        assert len(set(series)) == len(series), f"a series of {name} is there twice"
        found[name] = metric
    return found


def value(found: dict[str, Metric], family: Family, suffix: str = "", **labels: str) -> float:
    """Of the one series that has these labels, and no others."""
    [sample] = [
        sample
        for sample in found[family.name].samples
        if sample.name == family.name + suffix and sample.labels == labels
    ]
    return sample.value


def total(found: dict[str, Metric], family: Family, suffix: str = "", **labels: str) -> float:
    """Of all series that have these labels, among others; 0 if there is none."""
    return sum(
        sample.value
        for sample in (found[family.name].samples if family.name in found else ())
        if sample.name == family.name + suffix and labels.items() <= sample.labels.items()
    )
