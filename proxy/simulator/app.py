"""The simulator as an ASGI application: routes, keys, the record of calls, and the controls that tests use.

A request passes what it passes at Mistral, in this order: route (Kong), key, then what inference.py checks. A fault may
then spoil the answer; it never hides that the request was wrong.
"""

import hashlib
import time
from collections.abc import Callable, Collection

import msgspec

from proxy.simulator import models
from proxy.simulator.bill import Bill
from proxy.simulator.calls import Call, Calls, Ending
from proxy.simulator.errors import plain
from proxy.simulator.faults import NONE, Fault, UnknownFault, applied, latency, parse
from proxy.simulator.headers import Headers
from proxy.simulator.inference import ENDPOINTS, Context, asked_model, infer, read
from proxy.simulator.reply import JSON, Reply
from proxy.simulator.wire import Client, ClientGone, Receive, Scope, Send, deliver

_MODELS = "/v1/models"
_CONTROL = "/_sim/"


class Simulator:
    """An ASGI application; `calls` is its record, `bill` what a provider would ask for them. Made by create_app."""

    def __init__(self, api_keys: Collection[str] | None, control: bool, clock: Callable[[], float]) -> None:
        self.calls = Calls(time.monotonic)
        self.bill = Bill()
        self._running = 0
        self._headers = Headers(time.monotonic)
        self._api_keys = api_keys
        self._control = control
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError("the simulator speaks HTTP only; serve it with lifespan off")
        client = Client(scope, receive, send)
        try:
            if self._control and scope["path"].startswith(_CONTROL):
                await self._answer_control(client)
            else:
                await self._answer(client)
        except ClientGone:
            pass
        finally:
            client.release()

    async def _answer(self, client: Client) -> None:
        call = self.calls.begin(client.scope["method"], client.scope["path"], client.scope["headers"])
        self._running += 1
        try:
            ending = await self._answered(client, call)
        except ClientGone:
            ending = "client_gone"
        finally:
            self._running -= 1
            if call.path in ENDPOINTS:
                self.bill.add(call)
        self.calls.end(call, ending)

    async def _answered(self, client: Client, call: Call) -> Ending:
        body = await client.body()
        self.calls.keep_body(call, body)
        digest = hashlib.sha256(b"%d:%b" % (call.n, body)).digest()
        reply, fault = self._reply(call, body, digest)
        if reply.prompt is not None:
            call.billed_as, call.prompt = reply.model, reply.prompt
            call.completion = reply.completion if reply.events is None else 0
        headers = self._headers.around(reply, digest)
        return await deliver(client, call, reply, headers, fault, latency(fault, digest))

    def _reply(self, call: Call, body: bytes, digest: bytes) -> tuple[Reply, Fault]:
        headers = dict(call.headers)
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        refused = self._refused(call, authorization)
        inference = refused is None and call.path in ENDPOINTS
        request, problems = read(call.path, body) if inference else (None, [])
        call.model = asked_model(request) or None
        try:
            script = self.calls.next_fault() if inference else ""
            in_name = asked_model(request).partition("+")[2]
            fault = parse(script, in_name, headers.get(b"x-sim-fault", b"").decode("latin-1"))
        except UnknownFault as error:
            return plain(400, "message", str(error)), NONE
        if inference:
            context = Context(fault, digest, int(self._clock()), authorization)
            reply = infer(call.path, request, problems, context)
        else:
            reply = refused or self._listed(call.path)
        return applied(reply, fault, authorization), fault

    def _refused(self, call: Call, authorization: str) -> Reply | None:
        """What Kong and the key check answer before any handler sees the request."""
        listing = call.method == "GET" and (call.path == _MODELS or call.path.startswith(f"{_MODELS}/"))
        if not listing and not (call.method == "POST" and call.path in ENDPOINTS):
            return plain(404, "message", "no Route matched with those values")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return plain(401, "detail", "Unauthorized")
        if self._api_keys is not None and key.strip() not in self._api_keys:
            return plain(401, "detail", "Invalid API Key")
        return None

    def _listed(self, path: str) -> Reply:
        created, name = int(self._clock()), path.removeprefix(f"{_MODELS}/")
        if path == _MODELS:
            return Reply(200, JSON, msgspec.json.encode(models.cards(created)))
        if name in models.BY_NAME:
            return Reply(200, JSON, msgspec.json.encode(models.card(name, created)))
        return plain(404, "message", f"Model {name} {'is deprecated' if name in models.RETIRED else 'was not found'}.")

    async def _answer_control(self, client: Client) -> None:
        action = (client.scope["method"], client.scope["path"].removeprefix(_CONTROL))
        body = await client.body()
        reply = Reply(200, JSON, b"{}")
        if action == ("GET", "calls"):
            reply.body = msgspec.json.encode(self.calls.views())
        elif action == ("GET", "bill"):
            reply.body = msgspec.json.encode(self.bill.view(self._running))
        elif action == ("DELETE", "calls"):
            self.calls.clear()
            self.bill.clear()
        elif action == ("POST", "script"):
            reply = self._scripted(body)
        else:
            reply = plain(404, "message", "simulator: no such control")
        await client.start(reply.status, [*reply.headers, (b"content-length", b"%d" % len(reply.body))])
        await client.write(reply.body, more=False)

    def _scripted(self, body: bytes) -> Reply:
        try:
            faults = msgspec.json.decode(body, type=list[str])
            for fault in faults:
                parse(fault)
        except (msgspec.DecodeError, UnknownFault) as error:
            return plain(400, "message", str(error))
        self.calls.script(faults)
        return Reply(200, JSON, b"{}")


def create_app(
    *, api_keys: Collection[str] | None = None, control: bool = True, clock: Callable[[], float] = time.time
) -> Simulator:
    """A simulated Mistral API.

    `api_keys`: the keys that are let in (None: any that is not empty); `control`: serve `/_sim/*`, where tests script
    faults and read the calls received and the bill; `clock`: Unix seconds, for `created`.
    """
    return Simulator(api_keys, control, clock)
