"""The keys that a provider is paid with, and which one pays for a call.

A key whose account has used up what it may ask of a model rests, as long as the provider says. Where it does not, and
where a key is refused for good, another key has to do the same first: a refusal may be about what was asked, and nobody
can take the keys from the others by asking for it. Whoever comes when its time is over finds out whether it is well
again. None is used for more than its account has left (allowance.py).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from proxy.core.errors import KeyFault, ProviderBusy, ProxyError
from proxy.core.provider import Left
from proxy.core.secret import Secret
from proxy.core.services import Log
from proxy.upstream.allowance import Allowance, Sent

OUT: Final = 30.0
"""Seconds for which a key that is refused is not used; then one call finds out."""

REST: Final = 1.0
"""Seconds for which a key rests if the provider does not say, and another one has served the request."""

NEARLY: Final = 0.01
"""Seconds that count as none: who waits for the end of a rest may be woken a little early."""

MOST_MODELS: Final = 1_000
"""Models of which something is known of one key."""


class Key:
    """`label` is what logs call it, `load` how many calls it pays for at the moment."""

    __slots__ = ("_out", "_rests", "allowances", "headers", "label", "load")

    def __init__(self, label: str, secret: Secret | None) -> None:
        self.label = label
        self.headers = [("Authorization", f"Bearer {secret.reveal()}")] if secret else []
        self.load = 0
        self._rests: dict[str, float] = {}
        """When it may be used again, by model."""
        self._out: dict[str | None, float] = {}
        """When somebody may find out, for a model or (None) for anything."""
        self.allowances: dict[str, Allowance] = {}
        """What is known of its account, by model."""

    def left(self, model: str, now: float) -> float:
        """Seconds until it may be used for the model; 0: it may."""
        if not self._rests and not self._out:
            return 0.0
        left = max(self._until(model)) - now
        return left if left > NEARLY else 0.0

    def is_usable(self, now: float) -> bool:
        """Whether it is known to pay for some model, or nothing is known against it."""
        return self._out.get(None, 0.0) <= now

    def _until(self, model: str) -> tuple[float, float, float]:
        return self._rests.get(model, 0.0), self._out.get(model, 0.0), self._out.get(None, 0.0)

    def rest(self, model: str, now: float, seconds: float) -> None:
        if len(self._rests) >= MOST_MODELS:
            self._rests = {name: until for name, until in self._rests.items() if until > now}
        if len(self._rests) < MOST_MODELS:
            self._rests[model] = now + seconds

    def is_out(self, model: str) -> bool:
        """Whether it was refused, and nobody has found out that it is well."""
        return bool(self._out) and (model in self._out or None in self._out)

    def put_out(self, model: str | None, until: float) -> None:
        self._out[model] = until

    def find_out(self, model: str, until: float) -> None:
        """The call that finds out begins: the others wait."""
        for name in (model, None):
            if name in self._out:
                self._out[name] = until

    def bring_back(self, model: str) -> None:
        self._out.pop(model, None)
        self._out.pop(None, None)


class KeyPool:
    """Of one provider and those who share an account there. Without any key calls are made without one. None rests for
    more than `longest` seconds. As many `workers` use them. `now` gives monotonic seconds."""

    def __init__(
        self,
        label: str,
        secrets: Sequence[Secret],
        log: Log,
        longest: float = 60.0,
        workers: int = 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        several = len(secrets) > 1
        labels = [f"{label} {at}" if several else label for at in range(1, len(secrets) + 1)]
        self.keys = [Key(*pair) for pair in zip(labels, secrets, strict=True)] or [Key(label, None)]
        self.log = log
        self.longest = longest
        self.workers = workers
        self.now = now
        self._turn = -1

    def payment(self, model: str, tokens: int = 0) -> Payment:
        """For one call with a prompt of so many tokens."""
        return Payment(self, model, tokens)

    def take(self, model: str, tokens: int, tried: Sequence[Key]) -> Key:
        """The key that may be used soonest, and pays for the fewest calls; of equals each in its turn. Raises
        ProviderBusy if none may be used."""
        now = self.now()
        best = self.keys[0]
        if len(self.keys) > 1 or tried or best.left(model, now):
            usable = [key for key in self.keys if not key.left(model, now) and key not in tried]
            if not usable:
                raise ProviderBusy(min(key.left(model, now) for key in self.keys))
            best = usable[0] if len(usable) == 1 else self._soonest(usable, model, tokens)
        if best.is_out(model):
            best.find_out(model, now + OUT)
        best.load += 1
        return best

    def _soonest(self, usable: Sequence[Key], model: str, tokens: int) -> Key:
        self._turn += 1
        at = self._turn % len(usable)

        def rank(key: Key) -> tuple[float, int]:
            allowance = key.allowances.get(model)
            return allowance.wait(tokens) if allowance else 0.0, key.load

        return min([*usable[at:], *usable[:at]], key=rank)

    def has_other(self, model: str, tried: Sequence[Key]) -> bool:
        now = self.now()
        return any(key not in tried and not key.left(model, now) for key in self.keys)


class Payment:
    """The keys of one call, tried one after the other while it is the `key` that is refused."""

    __slots__ = ("_began", "_counted", "_faults", "_model", "_pool", "_sent", "_tokens", "key")

    key: Key

    def __init__(self, pool: KeyPool, model: str, tokens: int) -> None:
        self._pool = pool
        self._model = model
        self._tokens = tokens
        self._faults: list[tuple[Key, KeyFault]] = []
        self._counted: Allowance | None = None
        self._sent: Sent | None = None
        self._began = pool.now()

    def take(self) -> None:
        """Choose the key to try next; `give` must follow. Raises ProviderBusy."""
        tried = [key for key, _ in self._faults] if self._faults else ()
        self.key = self._pool.take(self._model, self._tokens, tried)

    def goes_at_once(self) -> bool:
        """Whether the key's account has something left, or nothing is known of it."""
        allowance = self.key.allowances.get(self._model)
        if allowance is None:
            return True
        self._sent = allowance.at_once(self._tokens)
        if self._sent is None:
            return False
        self._counted = allowance
        return True

    async def turn(self, rest: Callable[[float], Awaitable[None]]) -> None:
        """Wait until it has; `rest` sleeps. Raises ProviderBusy if that takes long."""
        allowance = self.key.allowances[self._model]
        self._sent = await allowance.turn(self._tokens, rest)
        self._counted = allowance

    def give(self) -> None:
        """The call is over."""
        self.key.load -= 1
        if self._counted:
            self._over()

    def heard(self, left: Left, *, refused: bool = False) -> None:
        """What the provider says of the account with its answer; `refused`, if that is a 429."""
        self._over()
        if left.requests is None and left.tokens is None:
            return
        allowances = self.key.allowances
        if self._model not in allowances:
            if len(allowances) >= MOST_MODELS:
                allowances.clear()
            allowances[self._model] = Allowance(self._pool.workers, self._pool.now)
        allowances[self._model].heard(left, self._sent or Sent(self._began), refused=refused)

    def _over(self) -> None:
        if self._counted:
            self._counted.over(self._tokens)
            self._counted = None

    def accepted(self) -> None:
        """The provider has begun to answer: this key is well, and the refusals before were about the others."""
        key, pool = self.key, self._pool
        if key.is_out(self._model):
            key.bring_back(self._model)
            pool.log("info", "key_back", key=key.label)
        for other, fault in self._faults:
            if fault is KeyFault.SPENT:
                self._rest(other, REST)
                continue
            other.put_out(self._model if fault is KeyFault.NO_MODEL else None, pool.now() + OUT)
            pool.log("error", "key_out", key=other.label, why=fault.value)
        self._faults.clear()

    def refused(self, error: ProxyError) -> bool:
        """Whether there is another key to try."""
        if error.key is KeyFault.NONE:
            return False
        if error.key is KeyFault.SPENT and error.asked:
            self._rest(self.key, min(error.asked, self._pool.longest))
        self._faults.append((self.key, error.key))
        return self._pool.has_other(self._model, [tried for tried, _ in self._faults])

    def _rest(self, key: Key, seconds: float) -> None:
        if key.left(self._model, self._pool.now()) < seconds:
            key.rest(self._model, self._pool.now(), seconds)
            self._pool.log("warning", "key_rests", key=key.label, seconds=round(seconds, 3))
