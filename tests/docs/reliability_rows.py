"""The rows of docs/reliability.md: what goes wrong, and what the client or the operator sees then.

A test shows the row that its name begins with: `test_a12_…` is about A12.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One fault. `seen` is what the client gets, or else the operator."""

    id: str
    fault: str
    seen: str


SECTIONS = {
    "A": "A client's connection and its HTTP",
    "B": "Request bodies",
    "C": "Paths, headers, keys",
    "D": "The upstream",
    "E": "Streams, and clients that leave",
    "F": "Retries and the circuit breaker",
    "G": "Limits, and what they count",
    "H": "The response cache",
    "I": "Redis",
    "J": "The ledger and its database",
    "K": "Configuration, signals, resources",
    "L": "What is seen of it",
}

ROWS = (
    Row(
        "A1",
        "`Content-Length` and `Transfer-Encoding` in one request",
        "400 `bad_framing`, closed; what was smuggled behind it is never read",
    ),
    Row(
        "A2",
        "`Content-Length` twice, as a list, signed, in hex, with 30 digits, with a space before the colon",
        "400 `bad_framing`, closed",
    ),
    Row("A3", "any `Transfer-Encoding` but the one word `chunked`", "400 `bad_framing`, closed"),
    Row("A4", "`Transfer-Encoding` in HTTP/1.0", "400 `bad_framing`, closed"),
    Row(
        "A5",
        "broken chunks: LF alone, wrong end, signed or hex-marked sizes, overflow, long extensions",
        "400 `bad_framing`, closed",
    ),
    Row("A6", "trailers that name a key, a host, a length, an address", "ignored: the request is what its head said"),
    Row(
        "A7",
        "bare LF or CR, NUL, folded lines, lines without a colon, names that are no token",
        "400 `bad_framing`, closed",
    ),
    Row("A8", "no `Host` or two, HTTP/0.9, 1.9 or 2.0", "400 `bad_framing`, closed"),
    Row(
        "A9",
        "a `Host` with a path or a query in it",
        "400 `bad_framing`; no decision is made from a URL put together of it",
    ),
    Row(
        "A10",
        "`GET http://…`, a target without a slash, `OPTIONS *`, `CONNECT`",
        "400 `bad_framing`; `CONNECT` 405 `method_not_allowed`",
    ),
    Row(
        "A11",
        "a huge head: long lines, many headers, a long URL",
        "431 `headers_too_large` or 414 `uri_too_long`, closed",
    ),
    Row(
        "A12",
        "clients that open a connection and send nothing, or a byte now and then",
        "408 `request_timeout`, or closed without a word if no byte came; nobody else waits",
    ),
    Row("A13", "a body that stops arriving, or drips", "408 `request_timeout`, closed; nothing is sent upstream"),
    Row(
        "A14",
        "a body shorter than announced, then the client is gone",
        "nothing is sent upstream; the log has status 499",
    ),
    Row("A15", "a body longer than announced", "the surplus is a request of its own and needs its own key"),
    Row(
        "A16",
        "a body above `server.max_body`, with a true, a false or no length",
        "413 `body_too_large` at the first byte over, closed",
    ),
    Row(
        "A17",
        "`Expect: 100-continue` with a bad key or too large a body",
        "the final status instead of 100; the body is not read",
    ),
    Row("A18", "a compressed body, a bomb too", "415 `unsupported_media_type`, nothing is unpacked"),
    Row("A19", "two keys on one connection, pipelined or one after the other", "each request is judged by its own key"),
    Row("A20", "an offer to upgrade to WebSocket or HTTP/2", "ignored and not passed on; served as HTTP/1.1"),
    Row(
        "A21",
        "TLS on the plain port, random bytes, thousands of connects without a word",
        "400 `bad_framing` or closed; the log shows none of the bytes",
    ),
    Row(
        "A22",
        "more connections than there are file descriptors",
        "idle ones make room, oldest first; when all are busy 503 `overloaded` or closed; health answers, and all is "
        "well once they leave",
    ),
    Row("A23", "IPv6 clients and listeners, IPv4 addresses in IPv6 form", "served; the address is normalised"),
    Row("A24", "a made-up `X-Forwarded-For`", "ignored, unless it comes from `server.trusted_proxies`"),
    Row("B1", "an empty body, or JSON that is no object", "400 `invalid_json`"),
    Row(
        "B2",
        "truncated JSON, something behind it, comments, single quotes",
        "400 `invalid_json` with the offset; the text is not repeated",
    ),
    Row("B3", "NaN, Infinity, 1e999", "400 `number_out_of_range`"),
    Row("B4", "arrays and objects nested too deep, a hundred thousand levels too", "400 `json_too_deep`"),
    Row(
        "B5",
        "the same key twice, also in two spellings",
        "400 `duplicate_key`; what is sent upstream is what was checked",
    ),
    Row("B6", "integers that JSON readers do not agree on", "400 `number_out_of_range`"),
    Row("B7", '`max_tokens` of -1, 0, 1.5, "10", true, 10⁹', "400 `invalid_type` or `invalid_value` with `param`"),
    Row("B8", "bytes that are not UTF-8, a byte order mark, UTF-16 and UTF-32", "400 `invalid_encoding`"),
    Row("B9", "half of a surrogate pair, in a value or a key", "400 `invalid_encoding`"),
    Row(
        "B10",
        "control characters, bidi marks, terminal escapes in text",
        "passed on as they are; a log line stays one line",
    ),
    Row("B11", "another content type, none, two, or another charset", "415 `unsupported_media_type`"),
    Row("B12", "multipart on an endpoint that takes JSON", "415 `unsupported_media_type`"),
    Row(
        "B13",
        "fields that would steer the proxy: another URL, key, header, fallback",
        "400 `unsupported_parameter`; the call goes where it always goes or nowhere",
    ),
    Row("B14", "URLs in content: metadata services, files, large data URLs", "text, never fetched by the proxy"),
    Row(
        "B15",
        "a thousand choices, tools or messages, schemas with bad regular expressions",
        "400 naming the limit, or passed on; no expression of a client is run",
    ),
    Row(
        "B16",
        "`stream` that is no boolean; `stream_options` in all forms",
        "400 `invalid_type`; usage reaches only who asked for it",
    ),
    Row("B17", "a large body of one script, the worst of its size", "served; the event loop is not held up"),
    Row("B18", "`Accept` says one thing, the body another", "the body decides"),
    Row(
        "C1", "ids and paths with `..`, `%2e`, `%252e`, `%2F`, `\\`, `;`, `//`", "404 or 400, nothing is sent upstream"
    ),
    Row("C2", "`%00`, `%0d%0a`, `%ff`, a fragment in a path", "404 or 400, nothing is sent upstream"),
    Row("C3", "a slash at the end, with another site's `Host`", "404 `unknown_url`, never a redirect"),
    Row("C4", "unknown paths, wrong methods, `HEAD`, `TRACE`", "404 or 405 as an error object"),
    Row(
        "C6",
        "the client's `Authorization`, cookies and other credentials",
        "never sent upstream, where exactly one key arrives: ours",
    ),
    Row(
        "C7",
        "two `Authorization` headers, odd schemes, huge or non-ASCII tokens",
        "two: 400 `bad_framing`; the others 401 `invalid_api_key`",
    ),
    Row(
        "C8",
        "the upstream repeats the provider's key, or refuses it",
        "the key is masked; 401 and 403 about it become 502 `upstream_auth_failed`",
    ),
    Row(
        "C9",
        "exceptions that carry requests and secrets",
        "500 `internal_error`; the log has the type and the request id",
    ),
    Row("C10", "secrets in logs, arguments, representations of settings, health", "none is there"),
    Row(
        "C11",
        "guessing a key by the time that comparing takes",
        "keys are looked up by digest and compared in constant time",
    ),
    Row("C12", "telling unknown, revoked and malformed keys apart", "401 `invalid_api_key`, byte for byte the same"),
    Row(
        "C13",
        "guessing keys by the thousand",
        "429 `too_many_auth_failures` after twenty within a minute, for longer and longer; whoever has a key is let in "
        "from there, too",
    ),
    Row(
        "C14",
        "line ends, NUL and non-ASCII in values that are passed on or logged",
        "filtered; no header can be made of them",
    ),
    Row(
        "C15",
        "hop-by-hop headers, also those named in `Connection`, both ways",
        "end at the proxy; its own cannot be removed by naming them",
    ),
    Row("C16", "headers with an underscore in place of a hyphen", "do not count"),
    Row("C17", "the upstream's own headers: cookies, CORS, rate limits of its account", "only listed ones come back"),
    Row(
        "C18",
        "CORS: preflights, `Origin: null`, foreign origins",
        "no CORS header unless `server.cors_origins` lists the origin, or `*`",
    ),
    Row("C19", "a `base_url` with user data, plain HTTP, a private address", "refused at start"),
    Row(
        "C21",
        "`/metrics`, `/admin`, `/docs`, `/openapi.json`",
        "404 `unknown_url`, with a key too; `/metrics` is for admins and for who is on the machine, to all others 401",
    ),
    Row("C22", "line ends, escapes, format marks in what is logged", "one line of JSON each, bounded in length"),
    Row("C23", "ten thousand different model names", "nothing grows with them"),
    Row("C24", "a key in the query or the path", "401 or 404; masked in the log"),
    Row("D1", "connection refused", "502 `upstream_error`"),
    Row("D2", "a connect that nobody answers", "504 `upstream_timeout` (connect)"),
    Row(
        "D3",
        "DNS: no such name, no answer, IPv6 dead and IPv4 alive",
        "502 `upstream_error` or 504 `upstream_timeout`; the loop does not wait, IPv4 is tried",
    ),
    Row(
        "D4",
        "TLS: expired, foreign, self-signed certificates, old versions, cut handshakes",
        "502 `upstream_error`; not a byte of the request was sent",
    ),
    Row("D5", "proxies, netrc and key logs in the environment", "ignored"),
    Row(
        "D6",
        "closed or reset before the answer",
        "502 `upstream_error`; a kept connection that died unused is replaced once, silently",
    ),
    Row("D7", "no answer, or a head and then silence", "504 `upstream_timeout` (first_byte)"),
    Row("D8", "a body shorter than announced, an incomplete chunk", "502 `upstream_error`"),
    Row("D9", "a body without length that ends half-way", "502 `upstream_error`"),
    Row(
        "D10",
        "bytes behind the answer",
        "if they have come before the connection is used again, it is not: nobody gets another's answer; "
        "`transport: httpx` uses no HTTP/1.1 connection twice, so that later ones reach nobody either",
    ),
    Row(
        "D11", "contradicting lengths, bad chunks, garbage status lines, floods of 1xx", "502 `upstream_error`, closed"
    ),
    Row("D12", "huge heads", "502 `upstream_error`"),
    Row(
        "D13",
        "HTML, JSON in place of a stream, a stream in place of JSON",
        "502 `upstream_error`; never passed on as it is",
    ),
    Row("D14", "compressed though nobody asked, bombs too", "502 `upstream_error`, nothing is unpacked"),
    Row(
        "D15",
        "JSON that does not parse; usage that is absent, negative, huge or no number",
        "502 `upstream_error`; bad usage is left out and logged as `usage_anomaly`",
    ),
    Row("D16", "400 and 422 about the client's input", "400 with `param`, in OpenAI's shape"),
    Row("D17", "401 and 403 about our key", "502 `upstream_auth_failed` and an alarm in the log"),
    Row("D18", "402: the account has no credit", "429 `insufficient_quota` with `x-should-retry: false`"),
    Row("D19", "429 with every form of `Retry-After`", "429 with a `retry-after` of 1 to 3600 seconds"),
    Row("D20", "500, 502, 503, 504", "the same class: `upstream_error`, `upstream_timeout`"),
    Row("D21", "200 with an error in it", "the error that it is"),
    Row("D22", "redirects", "502 `upstream_error`; never followed, so the key goes to one place only"),
    Row("D23", "an answer that names another model", "passed on"),
    Row("D24", "an answer that drips", "504 `upstream_timeout` (total), or the error frame in a stream"),
    Row("D25", "100 MB of JSON, one event of 50 MB", "502 `upstream_error` or the error frame; memory stays bounded"),
    Row("D26", "an answer before the request was read", "passed on; the rest of the upload is not waited for"),
    Row("E1", "the client leaves before the first byte of a stream", "the upstream connection is closed"),
    Row("E2", "the client leaves in the middle of a stream", "the upstream connection is closed"),
    Row("E3", "the client leaves during a call that does not stream", "the upstream connection is closed"),
    Row("E4", "thousands of abandoned streams", "no place in the pool and no task is left behind"),
    Row("E5", "the client closes its half and reads on", "counts as having left"),
    Row(
        "E6",
        "clients that read slowly or not at all",
        "the upstream is read as slowly; a client that reads nothing is cut off",
    ),
    Row("E7", "a client vanishes while the next event is always there", "the others are served"),
    Row(
        "E8",
        "the upstream's stream is cut, at any byte",
        "the error frame, then `[DONE]`; never an invented `finish_reason`",
    ),
    Row("E9", "the upstream's stream ends without its terminal mark", "the error frame, then `[DONE]`"),
    Row(
        "E10",
        "silence between two events",
        "comments that keep the connection open, then the error frame `upstream_timeout`",
    ),
    Row("E11", "an error inside the stream", "the error frame in OpenAI's shape, keys masked"),
    Row("E12", "every shape of SSE, cut anywhere", "the same events come out"),
    Row("E13", "broken JSON in an event", "the error frame"),
    Row("E14", "events behind `[DONE]`", "the stream ends at the first; the connection is not used again"),
    Row("E15", "no usage", "the answer as it is, nothing invented"),
    Row("E16", "a thousand streams at once", "each gets its own bytes, all of them"),
    Row("E17", "a proxy in front that buffers", "told not to, by headers"),
    Row(
        "F1",
        "429, 500, 502, 503, no connection",
        "asked again after 1 and 2 seconds or when the provider says; `x-proxy-attempts` tells",
    ),
    Row(
        "F2",
        "everything fails",
        "retries are a tenth of all requests within 30 seconds, or three; the others are told at once",
    ),
    Row("F3", "SDKs that try again by themselves", "`x-should-retry: false`: each asks once"),
    Row("F4", "any part of an answer has come", "one call, whatever becomes of it"),
    Row(
        "F5",
        "the provider may have done it: a reset after the request was sent, a 504",
        "502 or 504, one call; another one only if the operator wants it, which is logged and charged twice",
    ),
    Row(
        "F7",
        "a model that fails all the time",
        "after five failures in a row 503 `circuit_open` at once, for 30 seconds; then it is tried",
    ),
    Row("F8", "the crowd that waits for it", "one of all workers finds out, the others are told to come back"),
    Row("F9", "failures that are the clients' own, or ours", "they open no circuit"),
    Row("F10", "one model fails and another does not", "each has a circuit of its own"),
    Row(
        "F11", "a model does not answer, and another one may", "before the first byte, at its own price; else its error"
    ),
    Row("F12", "it may, but not for this team", "nothing goes there, and the first model's error is told"),
    Row("F13", "both are left alone", "503 with the time until the first of them is tried"),
    Row("F15", "no Redis to share them in", "each worker finds out by itself"),
    Row(
        "F16",
        "a key is refused, or its account is used up",
        "another key pays; with none left 429, and nobody is asked",
    ),
    Row("F17", "a provider with OpenAI's own API", "OpenAI's clients see OpenAI, and never our key or account"),
    Row(
        "G1",
        "more requests at once than are left, on several workers",
        "exactly as many as are left reach the upstream, 429 `rate_limit_exceeded` for the others",
    ),
    Row(
        "G2",
        "what a request will use is not known beforehand",
        "the most that it can is reserved, of all limits in one step, or it is refused",
    ),
    Row(
        "G3",
        "more was used than was reserved; a stream was cut, at any event",
        "charged in full, and the next request refused; of a stream what was delivered, never nothing after a token "
        "and never more than the whole",
    ),
    Row("G4", "less was used than was reserved", "the rest is free again, in the window it was taken from"),
    Row(
        "G5",
        "many requests at once against a limit on spend; a model without a price",
        "not a nano-dollar more, 429 `insufficient_quota`; 403 `model_not_allowed`, never charged 0",
    ),
    Row("G6", "rounding", "the sum of the ledger is what the provider asks for, to the nano-dollar"),
    Row(
        "G7",
        "a burst at the edge of a window",
        "never more than the limit in any span; whoever waits for `retry-after-ms` is let in",
    ),
    Row(
        "G8",
        "an error, a timeout, a client that leaves, a killed worker between reservation and settlement",
        "nothing stays reserved, no slot is held, the limit goes on from what was used; one row in the ledger",
    ),
    Row("G9", "a settlement that is sent twice because its answer was lost", "counts once"),
    Row(
        "G11",
        "an answer from the cache, also for a team that has nothing left",
        "counts as a request, and takes no tokens and no money; the row says what it saved",
    ),
    Row(
        "G12",
        "a limit edited, a key revoked, while streams run",
        "what was used counts; in force on every worker within a second; running streams end as they would have",
    ),
    Row("G13", "another time zone in the middle of a period", "what was used of the period counts"),
    Row(
        "G14",
        "no limit, a limit of 0, one below 0, no configuration at all",
        "everything, nothing, refused at start with file and line, 5 USD a day",
    ),
    Row(
        "G15",
        "what clients are told of their limits",
        "`x-ratelimit-*` of the rule that leaves the least, after this request; the SDKs retry where that helps, and "
        "only there",
    ),
    Row(
        "G17",
        "a request that falls under several limits: of its key, its team, its model, in shadow",
        "all or nothing: a refused one has used nothing of any",
    ),
    Row(
        "H1",
        "two teams, or two keys, ask the same",
        "each gets an answer of its own, unless `cache.scope` says otherwise",
    ),
    Row(
        "H2",
        "a request that is written differently: order, white space, numbers; one in which anything is different",
        "the same entry; another one",
    ),
    Row(
        "H3",
        "errors, cut streams, answers that failed or have no count of tokens, sampled ones",
        "never kept: the next one who asks is answered by the provider",
    ),
    Row(
        "H4",
        "500 ask the same at once, on several workers; the first one leaves, its worker dies, its call fails",
        "one call, whose bytes all of them get from the first one on; after a failure one more",
    ),
    Row("H5", "Redis is filled with garbage, cut, flipped or foreign entries", "a miss, and the entry is gone"),
    Row(
        "H6",
        "Redis is killed, frozen or slow under load",
        "a miss; every answer stays right, and soon it is used again",
    ),
    Row("H7", "a million different answers", "memory stays below `cache.max_bytes`; what is too old leaves by itself"),
    Row(
        "H8",
        "an answer that is kept: whole or a stream, tools, images, embeddings, reasoning",
        "byte for byte what it was, with a request id of its own; SDKs see no difference",
    ),
    Row(
        "H9",
        "`cache-control` of a request; the answers of a team are deleted",
        "`no-store`, `no-cache`, `max-age` and `only-if-cached` (504 `not_in_cache`) are obeyed; a miss",
    ),
    Row(
        "H10",
        "one member of a team finds out that another has asked the same",
        "possible within a team, by the time or by `x-proxy-cache`; not with `cache.scope: key`",
    ),
    Row(
        "H11",
        "the provider fails, or is not asked because it does",
        "what was answered before and is not older than `cache.stale_if_error`, with `x-proxy-cache: stale` and `age`",
    ),
    Row("I1", "not there at start", "503 `store_unavailable` for those with limits; used as soon as it comes"),
    Row(
        "I2",
        "killed under load",
        "no request waits longer than half a second; as `store.on_outage` says, and 503 `store_unavailable` for limits "
        "on spend; used again within five seconds, and the counts are right",
    ),
    Row("I3", "frozen under load", "the same"),
    Row("I4", "a little slow; too slow", "only slow, and counted once; as if it were gone"),
    Row("I5", "the answer is lost, though what was asked was done", "it is taken back"),
    Row(
        "I6",
        "full, or configured to throw keys away",
        "as if it were gone; with any policy but `noeviction` the start is refused",
    ),
    Row("I7", "a failover to a replica that has not heard everything", "what it says is not believed"),
    Row("I8", "flushed, or restarted with nothing", "counters are born again from the ledger before anybody is let in"),
    Row(
        "I9", "a wrong password, rights that are missing, forgotten scripts, a replica", "mended, or as if it were gone"
    ),
    Row("I10", "two deployments on one Redis", "each has the database that its URL numbers, and they share nothing"),
    Row(
        "J1",
        "a process is killed",
        "what it had under way ends as cancelled, with all that it may have cost, at the next start or by a neighbour "
        "within seconds",
    ),
    Row("J2", "the SQLite file is locked by somebody else", "no request waits; all rows are written later"),
    Row(
        "J3",
        "the disk is full",
        "503 `store_unavailable` once the journal is, while streams run to their end; no row is lost, and no restart "
        "is needed",
    ),
    Row("J5", "PostgreSQL is killed and comes back", "no request waits; all rows are written later"),
    Row("J6", "a commit whose answer was lost", "each row is there once, and counts once in the sums"),
    Row(
        "J7",
        "a database of a newer version; two starts at once on an empty one",
        "refused with exit code 2; both serve",
    ),
    Row("J8", "several workers, one SQLite file", "one ledger; replicas on other machines need PostgreSQL"),
    Row("J10", "SQL in the name of a model", "a value like any other"),
    Row("K1", "a reload of a broken file", "the old configuration stays whole; the log has file and line"),
    Row("K2", "a reload under load", "requests end under the configuration they began with"),
    Row(
        "K3", "YAML bombs, tags, 10 MB, duplicate keys, odd scalars", "refused with file and line; strings stay strings"
    ),
    Row(
        "K4",
        "secrets that every user of the machine can read",
        "a literal secret is refused; a secret file all can read, or a configuration all can change: a warning",
    ),
    Row(
        "K5",
        "SIGTERM with open streams",
        "readiness 503, soon no new connections; streams run until `server.drain`, then the error frame `draining`",
    ),
    Row("K6", "SIGHUP", "reload"),
    Row("K7", "a second signal", "the end at once"),
    Row("K8", "a worker is killed", "the others serve, it is replaced"),
    Row("K9", "a worker dies at every start", "longer and longer pauses; never ready; exit code 2 if none ever was"),
    Row("K10", "the clock jumps", "deadlines do not notice: they are counted by the monotonic clock"),
    Row("K12", "something blocks the event loop", "a test that meets it fails"),
    Row("K14", "more requests at once than a worker serves", "503 `overloaded` at once; `/health` answers"),
    Row("K15", "an exception anywhere", "500 `internal_error`, one constant text"),
    Row("K16", "cancellation at shutdown", "everything is released"),
    Row("K17", "connections shared by forked workers", "there are none: clients are made after the fork"),
    Row(
        "K18", "a dependency that was tampered with", "every one is pinned by its hash; the wheel runs nothing at start"
    ),
    Row(
        "L1",
        "prompts and answers, and what is said in them",
        "in no line; of a team that asks for it, redacted before it is cut",
    ),
    Row(
        "L2",
        "a known secret in URL encoding, JSON escapes, base64, in pieces of a stream",
        "a mark in its place, in a time linear in the length of the text",
    ),
    Row(
        "L3",
        "`/metrics` of several workers, any of which answers, while some of them are killed",
        "the sums of all, exactly what clients were told and the ledger has; no counter ever goes back",
    ),
    Row(
        "L4",
        "a collector of traces that is not there, refuses, or takes spans and never answers",
        "no request waits; what finds no room is dropped, counted and told once a minute; the end waits a second",
    ),
    Row(
        "L5",
        "an `x-request-id` of the client's",
        "kept if it is 1 to 128 letters, digits, `.`, `_`, `-`, without `..`, and no key; "
        "else ours: in answer, log, ledger, trace",
    ),
)

LEFT_OUT = {
    "C5": "one team's objects in another's hands: there are no object endpoints (files, batches) yet",
    "C20": "webhooks: there are none",
    "E18": "what the sizes of encrypted events tell a listener: they go out as Mistral pads them (`p`)",
    "F6": "the same `Idempotency-Key` twice: it is not looked at yet",
    "F14": "asking two at once for the faster answer: it is not done",
    "G10": "ending a stream that goes on beyond what was reserved: none is, it is charged (G3)",
    "G16": "a fair queue for teams that share the account's rate: there is none yet, each has its own limits",
    "J4": "a power failure: SQLite is told to sync each commit; no test cuts the power",
    "J9": "a ledger of millions of rows: `python -m bench.ledger` measures it, the suite looks at the query plans",
    "J11": "a log that nobody reads or whose reader is gone: see K12",
    "K11": "replicas whose clocks differ: time is that of Redis; its own tests show it",
    "K13": "growth over days: `scripts/soak` looks for it, the suite has not the time",
    "L6": "health while a part is missing: `tests/test_routes.py` shows that nobody is asked",
}
"""Rows that have no test, and why."""
