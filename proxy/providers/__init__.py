"""The providers there are. A new one is a folder and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.core.provider import Provider
from proxy.providers import mistral

PROVIDERS: Mapping[str, Provider] = {provider.name: provider for provider in (mistral.PROVIDER,)}
