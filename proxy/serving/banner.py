"""What `serve` prints once it answers."""

from __future__ import annotations

import shlex

from proxy.core import json
from proxy.serving.plan import LOCAL_SPEND, Plan


def banner(plan: Plan, port: int) -> str:
    """Where the proxy is, with which key it is used, and a line to try it with."""
    url = f"http://{_reachable(plan.settings.server.host)}:{port}"
    teams = ", ".join(plan.settings.teams)
    shown, export, pasted = "one of the team keys of the configuration", "<your team key>", "$OPENAI_API_KEY"
    if plan.local:
        secret, file = plan.local
        teams = f"{teams}  (may spend {LOCAL_SPEND})"
        shown, export, pasted = f"{secret.reveal()}  (kept in {file})", secret.reveal(), secret.reveal()
    model = json.encode(plan.settings.models.default or "mistral-small-latest").decode()
    body = shlex.quote(f'{{"model": {model}, "messages": [{{"role": "user", "content": "Hello!"}}]}}')
    simulated = "\n  SIMULATED: answers are made up here, nothing is sent to Mistral" if plan.simulate else ""
    return f"""\
mistral-proxy is ready on {url}
  config  {plan.sources.file or "none (defaults and environment)"}
  teams   {teams}
  key     {shown}{simulated}

export OPENAI_BASE_URL={url}/v1
export OPENAI_API_KEY='{export}'

curl {url}/v1/chat/completions \\
  -H "Authorization: Bearer {pasted}" \\
  -H "Content-Type: application/json" \\
  -d {body}
"""


def _reachable(host: str) -> str:
    """A host to write into a URL: the loopback address for a listener on all addresses, brackets around IPv6."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
