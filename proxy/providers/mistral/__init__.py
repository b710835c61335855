"""Mistral: its endpoints, one row each, and how its refusals are read. A new endpoint is a file and a line here."""

from __future__ import annotations

from proxy.core.provider import Provider
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.errors import answer_headers, left, mend, refusal
from proxy.providers.mistral.models import MODEL, MODELS

PROVIDER = Provider(
    name="mistral",
    # Routes are tried in this order: the busiest first.
    endpoints=(CHAT, EMBEDDINGS, MODELS, MODEL),
    refusal=refusal,
    mend=mend,
    answer_headers=answer_headers,
    left=left,
)
