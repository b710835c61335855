"""The APIs that a provider may speak. A new one is a folder and a line here, and its address in upstream/config.py."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.core.provider import Provider
from proxy.providers import mistral, openai

PROVIDERS: Mapping[str, Provider] = {provider.name: provider for provider in (mistral.PROVIDER, openai.PROVIDER)}
