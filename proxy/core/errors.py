"""Every error a client can see, and the one renderer.

    ProxyError                      500  server_error           internal_error
    ├── BadRequest                  400  invalid_request_error  invalid_value
    │   ├── BadFraming                                          bad_framing
    │   ├── InvalidJson                                         invalid_json
    │   ├── InvalidEncoding                                     invalid_encoding
    │   ├── JsonTooDeep                                         json_too_deep
    │   ├── JsonTooLarge                                        json_too_large
    │   ├── DuplicateKey                                        duplicate_key
    │   ├── NumberOutOfRange                                    number_out_of_range
    │   ├── InvalidType                                         invalid_type
    │   ├── UnsupportedParameter                                unsupported_parameter
    │   ├── UnsupportedValue                                    unsupported_value
    │   └── MissingParameter                                    missing_required_parameter
    ├── InvalidApiKey               401  invalid_request_error  invalid_api_key
    ├── ModelNotAllowed             403  permission_error       model_not_allowed
    ├── NotFound                    404  invalid_request_error  unknown_url
    │   ├── UnsupportedEndpoint                                 unsupported_endpoint
    │   ├── ModelNotFound                                       model_not_found
    │   └── UnknownRequest                                      unknown_request
    ├── MethodNotAllowed            405  invalid_request_error  method_not_allowed
    ├── RequestTimeout              408  invalid_request_error  request_timeout
    ├── BodyTooLarge                413  invalid_request_error  body_too_large
    ├── UriTooLong                  414  invalid_request_error  uri_too_long
    ├── UnsupportedMediaType        415  invalid_request_error  unsupported_media_type
    ├── HostNotAllowed              421  invalid_request_error  host_not_allowed
    ├── HeadersTooLarge             431  invalid_request_error  headers_too_large
    ├── RateLimited                 429  requests or tokens     rate_limit_exceeded
    ├── InsufficientQuota           429  insufficient_quota     insufficient_quota
    ├── TooManyAuthFailures         429  rate_limit_error       too_many_auth_failures
    ├── ProviderBusy                429  requests               rate_limit_exceeded
    ├── UpstreamRefusal             as the provider's error table says
    ├── UpstreamFailed              502  server_error           upstream_error
    ├── Overloaded                  503  server_error           overloaded
    ├── Draining                    503  server_error           draining
    ├── StoreUnavailable            503  server_error           store_unavailable
    ├── CircuitOpen                 503  server_error           circuit_open
    ├── NotInCache                  504  server_error           not_in_cache
    └── UpstreamTimeout             504  server_error           upstream_timeout

The shape is OpenAI's `{"error": {"message", "type", "param", "code"}}`; its SDKs choose the exception by status and
read `code`, `param` and `type` from the object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from math import ceil
from typing import Any, Final, Self

from proxy.core import json, wording
from proxy.core.json import Json

Headers = list[tuple[bytes, bytes]]


SHOULD_RETRY: Final = b"x-should-retry"
"""OpenAI's SDKs obey it, whatever the status is."""

ADVICE: Final = frozenset((b"retry-after", b"retry-after-ms", SHOULD_RETRY))
"""The headers of an error by which an SDK decides whether to repeat, and when."""

KEY_REFUSED: Final = "upstream_auth_failed"
"""The code of an error that says that the provider refuses the proxy's own key."""

_REPEATED: Final = (408, 409, 429)
"""Statuses below 500 after which OpenAI's SDKs repeat a request by themselves."""


class Repeat(Enum):
    """What a call that failed would do if it were made once more."""

    NEVER = "it would end the same way"
    SAFE = "the provider has not done it, and asks nothing for it"
    UNSAFE = "the provider may have done it, and may ask money for it"


class Elsewhere(Enum):
    """Whether another model, or another provider, may do what one has not done."""

    NO = "the request itself is at fault"
    LARGER = "a model with a larger context may"
    YES = "it may"


class KeyFault(Enum):
    """What a provider's refusal says of the key that the call was paid with."""

    NONE = "nothing"
    SPENT = "its account has used up, for now, what it may use of this model"
    NO_MODEL = "its account does not have this model"
    REFUSED = "it pays for nothing"


class Fault(Enum):
    """Whose fault a failure is."""

    CALLER = "caller"
    POLICY = "policy"
    PROVIDER = "provider"
    PROXY = "proxy"
    NETWORK = "network"


class ProxyError(Exception):
    """What the client is told. `message` is ours and constant: no secret, no traceback, no prompt.

    `param` names the field at fault in OpenAI's spelling (`messages[0].content`); `detail` adds keys to the error
    object; `headers` are sent with the answer; `blame` says whose fault it is, if it is not that of a key of ours. The
    rest is about the call to a provider that ended with it: `repeat`, `elsewhere`, what it says of the `key`, and
    `asked`, after how many seconds the provider itself wants it repeated.
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = "internal_error"
    always: tuple[tuple[bytes, bytes], ...] = ()
    blame: Fault = Fault.PROXY
    repeat: Repeat = Repeat.NEVER
    elsewhere: Elsewhere = Elsewhere.NO
    key: KeyFault = KeyFault.NONE
    asked: float | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        detail: dict[str, Any] | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.detail = detail or {}
        self.headers: Headers = [*self.always, *headers]
        if code is not None:
            self.code = code

    @property
    def fault(self) -> Fault:
        """Whose it is. A key that pays for nothing is for whoever runs the proxy to see to."""
        return Fault.PROXY if self.key is KeyFault.REFUSED or self.code == KEY_REFUSED else self.blame

    @property
    def retryable(self) -> bool:
        """Whether the client may do better by sending it again."""
        told = dict(self.headers).get(SHOULD_RETRY)
        return told == b"true" if told else self.status in _REPEATED or self.status >= 500

    @property
    def is_the_providers(self) -> bool:
        """Whether the provider is in trouble, and not the request, nor the model that it names."""
        return (self.elsewhere is Elsewhere.YES and self.param != "model") or isinstance(self, UpstreamUnknown)

    @property
    def is_the_times(self) -> bool:
        """Whether it was only the time of the whole request that was over. That is as often because of a client that
        reads slowly, or of what was waited for before, and says nothing of the provider."""
        return self.detail.get("timeout") == "total"

    @property
    def is_the_accounts(self) -> bool:
        """Whether it is about the key that the call was paid with: with another one it might have been answered."""
        return self.key is not KeyFault.NONE or self.code == KEY_REFUSED or isinstance(self, ProviderBusy)

    def again(self) -> Self:
        """The same for somebody else to be told, with headers and a traceback of its own."""
        other = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__)
        other.headers, other.detail = list(self.headers), dict(self.detail)
        return other

    def forbid_retry(self) -> None:
        """Whatever can be done about it has been done: an SDK that tries again by itself only multiplies it."""
        self.headers = [header for header in self.headers if header[0] != SHOULD_RETRY]
        self.headers.append((SHOULD_RETRY, b"false"))


class BadRequest(ProxyError):
    status, type, code = 400, "invalid_request_error", "invalid_value"
    blame = Fault.CALLER


class BadFraming(BadRequest):
    code = "bad_framing"


class InvalidJson(BadRequest):
    code = "invalid_json"


class InvalidEncoding(BadRequest):
    code = "invalid_encoding"


class JsonTooDeep(BadRequest):
    code = "json_too_deep"


class JsonTooLarge(BadRequest):
    code = "json_too_large"


class DuplicateKey(BadRequest):
    code = "duplicate_key"


class NumberOutOfRange(BadRequest):
    code = "number_out_of_range"


class InvalidType(BadRequest):
    code = "invalid_type"


class UnsupportedParameter(BadRequest):
    code = "unsupported_parameter"


class UnsupportedValue(BadRequest):
    code = "unsupported_value"


class MissingParameter(BadRequest):
    code = "missing_required_parameter"


class InvalidApiKey(ProxyError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"
    blame = Fault.CALLER


class ModelNotAllowed(ProxyError):
    status, type, code = 403, "permission_error", "model_not_allowed"
    blame = Fault.POLICY


class NotFound(ProxyError):
    status, type, code = 404, "invalid_request_error", "unknown_url"
    blame = Fault.CALLER


class UnsupportedEndpoint(NotFound):
    code = "unsupported_endpoint"


class ModelNotFound(NotFound):
    code = "model_not_found"


class UnknownRequest(NotFound):
    code = "unknown_request"


class MethodNotAllowed(ProxyError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"
    blame = Fault.CALLER


class RequestTimeout(ProxyError):
    status, type, code = 408, "invalid_request_error", "request_timeout"
    blame = Fault.CALLER


class BodyTooLarge(ProxyError):
    status, type, code = 413, "invalid_request_error", "body_too_large"
    blame = Fault.CALLER


class UriTooLong(ProxyError):
    status, type, code = 414, "invalid_request_error", "uri_too_long"
    blame = Fault.CALLER


class UnsupportedMediaType(ProxyError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"
    blame = Fault.CALLER


class HostNotAllowed(ProxyError):
    status, type, code = 421, "invalid_request_error", "host_not_allowed"
    blame = Fault.POLICY


class HeadersTooLarge(ProxyError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"
    blame = Fault.CALLER


def _retry(milliseconds: int | None) -> Headers:
    """Says when to try again, in whole seconds rounded up and exactly; None: it would be no use."""
    if milliseconds is None:
        return [(SHOULD_RETRY, b"false")]
    return [
        (b"retry-after", b"%d" % -(-milliseconds // 1000)),
        (b"retry-after-ms", b"%d" % milliseconds),
        (SHOULD_RETRY, b"true"),
    ]


def _no_retry(milliseconds: int | None) -> Headers:
    """Says when it would be some use, and that an SDK is not to wait for it."""
    times = [] if milliseconds is None else _retry(milliseconds)[:2]
    return [*times, (SHOULD_RETRY, b"false")]


class RateLimited(ProxyError):
    """A quota is used up for the next `wait` milliseconds; None: it is too small for this request. `about` says of
    what, `requests` or `tokens`, as OpenAI's errors do."""

    status, code = 429, "rate_limit_exceeded"
    blame = Fault.POLICY

    def __init__(self, message: str, *, about: str, wait: int | None, detail: dict[str, Any]) -> None:
        super().__init__(message, detail=detail, headers=_retry(wait))
        self.type = about


class InsufficientQuota(ProxyError):
    """The team's money is spent. An SDK that tried again by itself would only wait for the next period."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"
    blame = Fault.POLICY

    def __init__(self, message: str, *, wait: int | None, detail: dict[str, Any]) -> None:
        super().__init__(message, detail=detail, headers=_no_retry(wait))


class TooManyAuthFailures(ProxyError):
    """From this address came too many wrong keys. The same key would be as wrong the next time."""

    status, type, code = 429, "rate_limit_error", "too_many_auth_failures"
    blame = Fault.POLICY

    def __init__(self, message: str, *, wait: int) -> None:
        super().__init__(message, headers=_no_retry(wait))


class ProviderBusy(ProxyError):
    """No key of ours may ask the provider for `seconds`: it has said so itself."""

    status, type, code = 429, "requests", "rate_limit_exceeded"
    blame = Fault.PROVIDER
    repeat, elsewhere = Repeat.SAFE, Elsewhere.YES

    def __init__(self, seconds: float) -> None:
        super().__init__(
            wording.NO_MORE_REQUESTS,
            headers=_retry(ceil(seconds * 1000)),
        )
        self.asked = seconds


class UpstreamRefusal(ProxyError):
    """The provider's own error in OpenAI's terms; status, type and code come from the provider's error table.

    `mend`, where the table knows one, makes a corrected copy of the body that was refused, or None when it finds
    nothing to correct; the copy is worth sending once more.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,
        code: str | None,
        mend: Callable[[Json], Json | None] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message, **more)
        self.status, self.type, self.code, self.mend = status, type, code, mend
        self.blame = Fault.PROVIDER if status >= 500 or status == 429 else Fault.CALLER


class UpstreamUnknown(ProxyError):
    """How far the upstream came with its answer is not known. `billed`: it may ask money for it; not when it has said
    itself that it failed."""

    blame = Fault.PROVIDER
    repeat = Repeat.UNSAFE
    elsewhere = Elsewhere.YES

    def __init__(self, message: str, *, billed: bool = True, **more: Any) -> None:
        super().__init__(message, **more)
        self.billed = billed


class UpstreamFailed(UpstreamUnknown):
    status, type, code = 502, "server_error", "upstream_error"


_SOON = ((b"retry-after", b"1"), (b"retry-after-ms", b"1000"), (SHOULD_RETRY, b"true"))


class Overloaded(ProxyError):
    status, type, code = 503, "server_error", "overloaded"
    always = _SOON


class Draining(ProxyError):
    status, type, code = 503, "server_error", "draining"
    always = _SOON


class StoreUnavailable(ProxyError):
    """What is counted, or where it is written down, cannot be had: nobody's fault but ours."""

    status, type, code = 503, "server_error", "store_unavailable"
    always = _SOON


class CircuitOpen(ProxyError):
    """The provider is left alone for the next `wait` milliseconds. That is for the caller to know: an SDK that slept so
    long would keep it waiting."""

    status, type, code = 503, "server_error", "circuit_open"
    blame = Fault.PROVIDER
    elsewhere = Elsewhere.YES

    def __init__(self, message: str, *, wait: int) -> None:
        super().__init__(message, headers=_no_retry(wait))
        self.wait = wait


class NotInCache(ProxyError):
    """Asked for with `only-if-cached` (RFC 9111, section 5.2.1.7). Whoever wants it made asks without."""

    status, type, code = 504, "server_error", "not_in_cache"
    blame = Fault.CALLER
    always = ((SHOULD_RETRY, b"false"),)


class UpstreamTimeout(UpstreamUnknown):
    status, type, code = 504, "server_error", "upstream_timeout"


def forget_frames(error: BaseException) -> None:
    """What ended an exchange is kept with it, and would keep the bodies in the frames it came through: 32 MiB each,
    until it is the garbage collector's turn."""
    error.__traceback__ = error.__context__ = None


class ClientGone(Exception):
    """The client left before its answer was complete: nothing can be sent, everything must be released."""


def place_of(error: BaseException) -> str:
    """Where it was raised, `function:line`. For the log: its text, which may quote a request or a key, is not."""
    place, trace = "unknown", error.__traceback__
    while trace is not None:
        place, trace = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}", trace.tb_next
    return place


def render(error: ProxyError) -> bytes:
    """The JSON body of an error answer; the same object goes into a stream as its error frame."""
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return json.encode({"error": body | error.detail})
