"""What is secret, where it could come to light, and where it may.

ALLOWED is the claim that is tested; what it does not name is not allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a canary is."""

    OPERATOR = "a key or password of the operator's: of admins, of Redis, of PostgreSQL, the pepper"
    ENVIRONMENT = "a variable of the environment that nothing refers to"
    LITERAL = "a secret written into a configuration that is refused for it"
    PROVIDER_KEY = "a key that goes to a provider"
    TEAM_KEY = "a key of a team"
    HEADER = "anything in a header or a query that we need not know, and a key in a path"
    TRACE = "the id of a request or a trace, made by the client"
    MODEL = "the name of a model, made up by the client"
    FIELD = "the name of a field, made up by the client"
    PATH = "a path that leads nowhere"
    CONTENT = "a prompt, an image, a tool, who is asking: all of a body that is no name"
    PERSONAL = "an e-mail address or a key of somebody else's in a prompt"
    TOLD = "what a provider answers, errors included"
    UPSTREAM = "what a provider says to us alone: www-authenticate, location, set-cookie, its own headers"


class Sink(StrEnum):
    """Where it could be read. ANSWER and CONTENT_LOG belong to somebody: only what is theirs may be there."""

    ANSWER = "an answer to a client: its head and its body"
    CONTENT_LOG = "the line of a request of a team with log_content"
    LOG = "everything else that is printed while it serves or a configuration is refused"
    COMMANDS = "what `keys list`, `usage` and `check` print"
    METRICS = "/metrics"
    TRACES = "what is sent to the collector"
    ADMIN = "answers of /admin"
    RECORD = "what an admin is told of a request that has ended"
    HEALTH = "answers of /health"
    LEDGER = "all that is kept on disk: the database and its journals, what waits to be written, anything else"
    CACHE = "answers in Redis, and pieces of them on their way from worker to worker"
    REDIS = "all else that is said to Redis, and all else that it keeps"
    PROCESS = "names and arguments of processes"
    UPSTREAM_HEADERS = "headers of what is sent to a provider"
    UPSTREAM_BODY = "body and path of what is sent to a provider"


_SENT_ON = frozenset({Sink.ANSWER, Sink.UPSTREAM_BODY, Sink.CACHE})
"""What a client says goes to the provider, and may come back in an answer of that client's."""

ALLOWED: dict[Kind, frozenset[Sink]] = {
    Kind.OPERATOR: frozenset(),
    Kind.ENVIRONMENT: frozenset(),
    Kind.LITERAL: frozenset(),
    # Who says it in a prompt has said it to the provider, too; but nobody is ever told.
    Kind.PROVIDER_KEY: frozenset({Sink.UPSTREAM_HEADERS, Sink.UPSTREAM_BODY}),
    Kind.TEAM_KEY: _SENT_ON,  # in a body of that team's own
    Kind.HEADER: frozenset(),
    Kind.TRACE: frozenset(
        {
            *(Sink.ANSWER, Sink.LOG, Sink.CONTENT_LOG, Sink.TRACES, Sink.ADMIN, Sink.RECORD),
            *(Sink.LEDGER, Sink.UPSTREAM_HEADERS),
        }
    ),
    Kind.MODEL: _SENT_ON | {Sink.LOG, Sink.CONTENT_LOG, Sink.RECORD, Sink.LEDGER, Sink.COMMANDS},
    Kind.FIELD: _SENT_ON | {Sink.LOG, Sink.CONTENT_LOG, Sink.RECORD},
    Kind.PATH: frozenset({Sink.LOG, Sink.RECORD}),
    Kind.CONTENT: _SENT_ON | {Sink.CONTENT_LOG},
    Kind.PERSONAL: _SENT_ON,
    Kind.TOLD: frozenset({Sink.ANSWER, Sink.CACHE, Sink.CONTENT_LOG}),
    Kind.UPSTREAM: frozenset(),
}

OWNED = frozenset({Sink.ANSWER, Sink.CONTENT_LOG})


@dataclass(frozen=True)
class Canary:
    """`owner` is whose it is: a sender, or nobody's in particular."""

    name: str
    kind: Kind
    text: str
    owner: str | None = None

    def may_be(self, sink: Sink, owner: str | None) -> bool:
        """Whether it may be seen there; `owner` is whose `sink` it is."""
        return sink in ALLOWED[self.kind] and (sink not in OWNED or self.owner in (None, owner))
