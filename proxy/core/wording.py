"""Sentences that clients are told by more than one part of the program: whoever refuses, and for whichever provider, it
is the same sentence."""

from typing import Final

ALL_IN_USE: Final = "All connections to the upstream are in use."
SHUTTING_DOWN: Final = "The proxy is shutting down. Send the request again."

# Of the account behind this proxy: a provider's own words are for its owner, and the client is not.
KEY_REFUSED: Final = "The proxy's own key was refused by the provider; its operator must act."
NO_ACCESS: Final = (
    "The provider account behind this proxy has no access to this model: choose another one, or ask the proxy's "
    "operator to enable it."
)
NO_ALLOWANCE: Final = (
    "The provider account behind this proxy has no allowance for this model, and waiting does not change that: "
    "choose another model."
)
NO_CREDIT: Final = "The provider account behind this proxy has reached its spending limit; its operator must act."

# Of what the provider takes at this moment.
NO_MORE_REQUESTS: Final = (
    "Rate limit exceeded: the provider takes no more requests for this model right now. Wait, then try again."
)
NO_MORE_TOKENS: Final = (
    "Rate limit exceeded: the provider takes no more tokens for this model right now. Wait, then try again."
)
NO_CAPACITY: Final = "The provider has no capacity left for this model right now. Wait, then try again."

# Of an answer of the provider's, with its HTTP status in the place of {status}.
FAILED: Final = "The provider could not answer (HTTP {status}). Nothing is wrong with the request: try again."
TIMED_OUT: Final = "The provider's own servers timed out (HTTP {status}). Nothing is wrong with the request: try again."
REFUSED: Final = "The provider refused the request (HTTP {status})."
NO_SENSE: Final = "The provider's answer makes no sense (HTTP {status})."
REDIRECT: Final = "The provider answered with a redirect, which is never followed: base_url must name the API itself."
NO_ENDPOINT: Final = "The provider has no such endpoint."
TOO_LARGE: Final = "The request is larger than the provider takes."
