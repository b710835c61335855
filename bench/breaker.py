"""What the circuit breaker and the readiness to try again cost a call that succeeds, as bench.stages measures it.

    python -m bench.breaker [ROUNDS]

With all circuits closed, and with those of two other models open.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from bench.stages import Round, answer, bare_forwarder, cpu, services, summary
from proxy.core.circuit import Circuits, Pass
from proxy.pipeline import fold
from proxy.providers.mistral.chat import CHAT
from proxy.stages import breaker
from proxy.upstream.config import CircuitBreaker, Retry
from proxy.upstream.retry import Retries

GOAL = 8


def _staged(circuits: Circuits) -> ASGIApp:
    retries = Retries(Retry())
    made = services(circuits=circuits)

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        retries.request()
        await answer(scope, receive, send)

    return fold((breaker.build(breaker.Config({"mistral": CircuitBreaker()}), CHAT, made),), counted)


async def measure(rounds: int, *, trouble: bool) -> list[Round]:
    circuits = Circuits(time.monotonic, lambda *_, **__: None)
    for name in ("mistral/one", "mistral/another") if trouble else ():
        while circuits.failed(Pass(name), CircuitBreaker()):
            pass
    app = _staged(circuits)
    with tempfile.TemporaryDirectory() as folder:
        async with bare_forwarder(Path(folder)) as forwarded:
            await cpu(app)
            return [Round(await forwarded(), await cpu(answer), await cpu(app)) for _ in range(rounds)]


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 20
    for name, trouble in (("all is well", False), ("two circuits open", True)):
        print(summary(name, GOAL, uvloop.run(measure(rounds, trouble=trouble))))


if __name__ == "__main__":
    main(sys.argv[1:])
