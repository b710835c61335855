"""Names by which gateways that speak OpenAI's language let a request choose another model, or who serves it.

A table of this provider passes on what it does not name. These would get around the models that a team may use, and
around the price that its request was reserved at.
"""

from __future__ import annotations

from proxy.core.table import refuse

_MODEL = "a request has one model, and names it in 'model'"
_WHERE = "a request does not choose its provider"

NAMES = {"models": _MODEL, "preset": _MODEL, "route": _WHERE, "provider": _WHERE}
"""Each name, and why it is refused. Source: OpenRouter's API, model and provider routing."""

ROUTING = tuple(refuse(name, why) for name, why in NAMES.items())
"""For the end of a table of a request's top level."""
