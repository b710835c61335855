"""What a request is charged when it has ended, however it did.

the provider said what was used                        that
nothing of it can have reached the provider            nothing
a stream that was cut, or whose provider never said    the prompt's estimate and what was passed on
the provider refused, or said that it failed           nothing
any other call whose answer is not known               all that was reserved: it may have been answered in full
"""

from __future__ import annotations

from proxy.core.charge import NOTHING, Charge, Estimate, charge, partial, whole
from proxy.core.errors import Draining, ProxyError, UpstreamUnknown
from proxy.core.json import Json
from proxy.core.model import Model


def charged(
    estimate: Estimate | None,
    model: Model,
    usage: Json | None,
    *,
    tier: str | None = None,
    sent: bool,
    delivered: int | None,
    ended: BaseException | None,
) -> Charge:
    """`sent`: some of it may have reached the provider. `delivered`: the tokens that were passed on one by one, or None
    for an answer that is had as a whole or not at all. `ended` is what ended it, if not its answer."""
    if estimate is None:
        return NOTHING
    if usage is not None:
        # An answer that does not say its tier has the one that was asked for.
        return charge(usage, model, tier or ("priority" if estimate.priority else None))
    if not sent or not (delivered or may_be_billed(ended)):
        return NOTHING
    return whole(estimate) if delivered is None else partial(estimate, model, delivered)


def may_be_billed(ended: BaseException | None) -> bool:
    """Whether the provider may ask money for a call that was sent and ended like this."""
    if isinstance(ended, UpstreamUnknown):
        return ended.billed
    # The proxy's own errors come before a call; the end of the drain and a client's leaving come at any time.
    return not isinstance(ended, ProxyError) or isinstance(ended, Draining)
