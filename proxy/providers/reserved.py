"""Names by which other gateways, and the OpenAI SDK's own options, let a request choose where it goes and as whom.

Here only proxy.yaml does. Such a field would be left out like any unknown one; a client that sends it expects it to
work, or tries whether it does, and both must hear that it does not. As a value inside `metadata` they are plain text.
"""

from __future__ import annotations

from proxy.core.table import refuse

_WHERE = "a request does not choose its provider"
_WHO = "a request does not bring the key"
_WHAT = "a request does not set what is sent beside it"
_HOW = "a request does not say what is done when the provider fails"

NAMES = {
    "api_base": _WHERE, "base_url": _WHERE, "api_url": _WHERE, "endpoint_url": _WHERE, "custom_llm_provider": _WHERE,
    "api_type": _WHERE, "api_version": _WHERE, "deployment_id": _WHERE, "region_name": _WHERE, "model_list": _WHERE,
    "litellm_params": _WHERE, "proxy": _WHERE, "proxies": _WHERE, "http_client": _WHERE,
    "api_key": _WHO, "authorization": _WHO, "organization": _WHO, "azure_ad_token": _WHO, "vertex_credentials": _WHO,
    "aws_access_key_id": _WHO, "aws_secret_access_key": _WHO, "aws_session_token": _WHO,
    "headers": _WHAT, "extra_headers": _WHAT, "default_headers": _WHAT, "extra_body": _WHAT, "extra_query": _WHAT,
    "default_query": _WHAT,
    "fallbacks": _HOW, "context_window_fallbacks": _HOW, "content_policy_fallbacks": _HOW, "num_retries": _HOW,
    "max_retries": _HOW, "timeout": _HOW, "request_timeout": _HOW, "stream_timeout": _HOW,
    "mock_response": _HOW, "mock_tool_calls": _HOW, "mock_timeout": _HOW,
}  # fmt: skip
"""Each name, and why it is refused. Sources: LiteLLM's completion parameters, the OpenAI SDK's request options."""

RESERVED = tuple(refuse(name, why) for name, why in NAMES.items())
"""For the end of a table of a request's top level."""
