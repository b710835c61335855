"""OpenAI, and every server that speaks its language: vLLM, Ollama, OpenRouter, gateways of other clouds.

What a client sends goes there as it came, but for a short list; what comes back is looked at and not rewritten.
"""

from __future__ import annotations

from proxy.core.provider import Provider
from proxy.providers.openai.chat import CHAT
from proxy.providers.openai.embeddings import EMBEDDINGS
from proxy.providers.openai.errors import answer_headers, mend, refusal
from proxy.providers.openai.limits import left
from proxy.providers.openai.models import MODEL, MODELS

PROVIDER = Provider(
    name="openai",
    endpoints=(CHAT, EMBEDDINGS, MODELS, MODEL),
    refusal=refusal,
    mend=mend,
    answer_headers=answer_headers,
    left=left,
)
