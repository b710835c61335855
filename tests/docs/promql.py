"""What a PromQL expression says of our metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator

from proxy.core.metrics.families import FAMILIES, Family, Kind

BY_NAME = {family.name: family for family in FAMILIES}
OF_HISTOGRAMS = ("_bucket", "_sum", "_count")
PROMETHEUS_OWN = {"instance", "job"}


def parts(expression: str) -> Iterator[tuple[str, Family, set[str]]]:
    """Each metric of it: its name there, its family, and the labels by which it is chosen. Raises KeyError for one that
    does not exist."""
    for name, selector in re.findall(r"\b(mistral_\w+)(?:\{([^}]*)\})?", expression):
        stem = next((name.removesuffix(end) for end in OF_HISTOGRAMS if name.removesuffix(end) in BY_NAME), name)
        yield name, BY_NAME[stem], set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", selector))


def check(expression: str) -> None:
    """Names and labels exist, and counters are looked at by their rate."""
    found = list(parts(expression))
    assert found
    for name, family, labels in found:
        assert (name == family.name) == (family.kind is not Kind.HISTOGRAM), name
        assert labels <= set(family.labels) | PROMETHEUS_OWN, name
        for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
            names = set(grouped.replace(" ", "").split(",")) - PROMETHEUS_OWN
            assert names - {"le"} <= set(family.labels), grouped
            assert ("le" in names) == name.endswith("_bucket")
        rated = re.search(rf"\b(rate|increase)\({name}\b", expression) is not None
        assert rated == (family.kind is not Kind.GAUGE), name
