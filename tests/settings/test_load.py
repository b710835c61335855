from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from proxy.settings import load as module
from proxy.settings.load import SettingsError, load
from proxy.settings.model import Settings

DIGEST = "sha256:" + "a" * 64
LITERAL = "a secret is not written into the file: use ${NAME}, file:/path or, for team keys, sha256:<hex>"
LITERAL_KEY = "a key is not written into the file: use ${NAME}, file:/path or sha256:<hex>"
LEDGER = "expected sqlite:///path of the file, postgresql://user@host/database or off"
ZONE = "there is no such time zone; expected a name such as UTC or Europe/Paris"
PRICE = "expected USD per million tokens, such as 0.5; finer than a millionth is no price"
LIMIT = (
    "expected a limit in a window, as in 60/minute or 50 USD/month; windows are second, minute, hour, day, week, month"
)
ONE_LIMIT = "one item has one limit: requests, tokens, spend or concurrency"
NO_HOST = "expected a host name or an IP address, without port or brackets"
WORKERS = "more than 1 needs a store that workers can share: store.url on redis"
STORE = "expected memory://, redis://host:6379/0 or rediss://host:6379/0"
PASSWORD = "a password is not written into the file: use ${NAME} or file:/path"
DURATION = "expected a duration such as 250ms, 30s, 5m, 1h or 7d"
SIZE = "expected a size such as 64KB or 32MB"
LEVELS = "expected one of: debug, info, warning, error"
OWN_NAME = "as it is called; another one has a name of its own"
KINDS = "expected one of: mistral, openai"
WHICH = "say which API it speaks: type: mistral or type: openai"
PROVIDER_NAME = "a provider's name has 1 to 32 of a-z, 0-9 and '-', and begins with a letter"
MODEL_NAME = "a model's name is at most 256 visible ASCII characters, without spaces and without '..'"
STRAY = "no such provider, which the part before a model's slash is"
SMALL = "models.fallbacks.mistral-small-latest"
THEIRS = "this is a team's key to this proxy: it would be sent to the provider"
SHA256 = "expected sha256: and 64 lower-case hexadecimal digits"
NO_FILE = "the secret file does not exist or is not a regular file"
NO_KEY = "a team needs at least one key: without a ledger none can be issued"
NO_TEAM_NAME = "a team name has 1 to 64 letters, digits, '_', '.' or '-' and begins with a letter or digit"


def test_no_file_and_no_environment_is_the_defaults():
    assert load(None, {}) == Settings()


def test_a_whole_file(read, secret_file):
    environ = {"PORT": "9000", "MISTRAL": "sk-m", "ONE": "sk-1"}
    settings = read(
        f"""
server:
  port: ${{PORT}}
  max_body: 1MB
  drain: 500ms
  hosts: [proxy.example.com]
providers:
  mistral: {{api_keys: ["${{MISTRAL}}"], transport: httpx, http2: true, timeouts: {{connect: "${{WAIT:-3s}}"}}}}
models:
  default: no
  aliases: {{gpt-4o: off, "1": 0123, 2: 1e3}}
  default_temperature: 1
translation: {{mode: strict}}
teams:
  research:
    keys: ["${{ONE}}", {DIGEST}, {secret_file(b"sk-2")}]
    models: [mistral-*, yes]
    log_content: true
logging: {{level: debug, content_max_chars: 10}}
""",
        environ,
    )
    assert settings.server.port == 9000
    assert settings.server.max_body == 1 << 20
    assert settings.server.drain == 0.5
    assert settings.mistral.timeouts.connect == 3.0
    assert settings.models.default == "no"
    assert settings.models.aliases == {"gpt-4o": "off", "1": "0123", "2": "1e3"}
    assert settings.models.default_temperature == 1.0
    research = settings.teams["research"]
    assert [key.secret.reveal() if key.secret else key.digest.hex() for key in research.keys] == [
        "sk-1",
        "a" * 64,
        "sk-2",
    ]
    assert research.models == ["mistral-*", "yes"]
    assert "sk-" not in repr(settings)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        *[(word, word) for word in ("none", "truncated", "full", '"full"')],
        *[(word, True) for word in ("true", "True", "yes", "on", '"${LOUD}"')],
        *[(word, False) for word in ("false", "FALSE", "no", "off", '"${QUIET:-no}"')],
    ],
)
def test_what_is_logged_of_a_team_is_a_word_that_means_what_it_says(read, written, said):
    settings = read(f"teams: {{a: {{keys: ['${{A}}'], log_content: {written}}}}}", {"A": "sk-a", "LOUD": "yes"})
    assert settings.teams["a"].log_content == (said.strip('"') if isinstance(said, str) else said)


@pytest.mark.parametrize("written", ["maybe", "null", "1", "''", "[full]", "{mode: full}"])
def test_what_is_logged_of_a_team_is_no_other_word(refusals, written):
    told = refusals(f"teams: {{a: {{keys: ['${{A}}'], log_content: {written}}}}}", {"A": "sk-a"})
    assert [one.partition(": ")[2].partition(": ")[0] for one in told] == ["teams.a.log_content"]


REFUSED = [
    # keys
    ("sevrer: {}", ["1: sevrer: unknown key (did you mean 'server'?)"]),
    ("zzz: 1", ["1: zzz: unknown key"]),
    ("server:\n  'a b': 1", ["2: server.'a b': unknown key"]),
    ("server: {port: 1, port: 2}", ["1: server.port: given twice, first on line 1"]),
    ("server:\n  port: 1\n  host: a\n  port: 2", ["4: server.port: given twice, first on line 2"]),
    ("logging: {}\nlogging: {}", ["2: logging: given twice, first on line 1"]),
    ("teams:\n  a: {keys: [D]}\n  a: {keys: [D]}", ["3: teams.a: given twice, first on line 2"]),
    ("models: {aliases: {a: b, a: c}}", ["1: models.aliases.a: given twice, first on line 1"]),
    ("models: {aliases: {'': b}}", ["1: models.aliases.'': a name is one line of text"]),
    ("models: {aliases: {'a\\n': b}}", []),
    ('models: {aliases: {"a\\n": b}}', ["1: models.aliases.'a\\n': a name is one line of text"]),
    ("models:\n  aliases:\n    ${A}: b", ["3: models.aliases.'${A}': a reference is read in a value, not in a name"]),
    # a collector's address: anybody's, and never with a secret in it
    *(
        (f"tracing: {{otlp_endpoint: '{url}'}}", [f"1: tracing.otlp_endpoint: {reason}"])
        for url, reason in {
            "otel-collector:4318": "expected a URL such as http://otel-collector:4318",
            "grpc://otel-collector:4317": "expected a URL such as http://otel-collector:4318",
            "https://user:literal@otlp.example.com": "no user name or password in a URL",
            "https://otlp.example.com/?api-key=literal": "no query and no fragment: a key goes into the variable "
            "OTEL_EXPORTER_OTLP_HEADERS",
        }.items()
    ),
    ("tracing: {sample: 1.1}", ["1: tracing.sample: must be at most 1"]),
    ("tracing: {sample: -0.1}", ["1: tracing.sample: must be at least 0"]),
    # shapes
    ("- a", ["1: expected a mapping (key: value)"]),
    ("word", ["1: expected a mapping (key: value)"]),
    ("server: 5", ["1: server: expected a mapping (key: value)"]),
    ("server: null", ["1: server: expected a mapping (key: value)"]),
    ("server: ''", ["1: server: expected a mapping (key: value)"]),
    ("server: [a]", ["1: server: expected a mapping (key: value)"]),
    ("server:\n  hosts: a", ["2: server.hosts: expected a list"]),
    ("server:\n  hosts:", ["2: server.hosts: expected a list"]),
    ("server: {port: [1]}", ["1: server.port: expected a single value"]),
    ("server: {port: {a: 1}}", ["1: server.port: expected a single value"]),
    ("server: {port: *x}", ["1: server.port: aliases (*name) are not read: write the value out"]),
    ("server:\n  port: !!int 5", ["2: server.port: tags (!name) are not read: write the value alone"]),
    ("server: !!python/object:x.Y {}", ["1: server: tags (!name) are not read: write the value alone"]),
    ("models:\n  default: '" + "x" * 4097 + "'", ["2: models.default: longer than 4,096 characters"]),
    ("<<: {server: {port: 1}}", ["1: <<: unknown key"]),
    # scalars
    ("server: {port: eighty}", ["1: server.port: expected an integer"]),
    ("server: {port: '8080'}", ["1: server.port: expected an integer, without quotes"]),
    ("server: {port: 08080}", ["1: server.port: expected an integer"]),
    ("server: {port: 8e3}", ["1: server.port: expected an integer"]),
    ("server: {port: true}", ["1: server.port: expected an integer"]),
    ("server: {port: null}", ["1: server.port: expected an integer"]),
    ("server:\n  port:\n  host: a", ["2: server.port: expected an integer"]),
    ("server: {port: 65536}", ["1: server.port: must be at most 65535"]),
    ("server: {port: -1}", ["1: server.port: must be at least 0"]),
    ("server: {host: null}", ["1: server.host: expected one line of text"]),
    ("server: {host: ''}", ["1: server.host: expected one line of text"]),
    ("server: {host: 'a:80'}", [f"1: server.host: {NO_HOST}"]),
    ("server: {hosts: [a, 'b c', d, e/f]}", [f"1: server.hosts[1]: {NO_HOST}", f"1: server.hosts[3]: {NO_HOST}"]),
    ("server: {workers: 2}", [f"1: server.workers: {WORKERS}"]),
    ("store: {url: memory://}\nserver: {workers: 2}", [f"2: server.workers: {WORKERS}"]),
    ("store: {url: redis://cache}\nserver: {workers: 257}", ["2: server.workers: must be at most 256"]),
    ("store: {url: memory}", [f"1: store.url: {STORE}"]),
    ("store: {url: 'redis://'}", [f"1: store.url: {STORE}"]),
    ("store: {url: 'redis://h:70000'}", [f"1: store.url: {STORE}"]),
    ("store: {url: 'https://h'}", [f"1: store.url: {STORE}"]),
    ("store: {url: }", [f"1: store.url: {STORE}"]),
    ("store: {url: 'redis://:${NONE}@h'}", ["1: store.url: environment variable NONE is not set"]),
    ("store: {url: 'redis://:hunter2@h'}", [f"1: store.url: {PASSWORD}"]),
    ("store: {on_outage: wait}", ["1: store.on_outage: expected one of: local, open, closed"]),
    ("ledger: {url: sqlite}", [f"1: ledger.url: {LEDGER}"]),
    ("ledger: {url: 'mysql://h/d'}", [f"1: ledger.url: {LEDGER}"]),
    ("ledger: {url: 'postgresql://h'}", [f"1: ledger.url: {LEDGER}"]),
    ("ledger: {url: 'postgresql://u:hunter2@h/d'}", [f"1: ledger.url: {PASSWORD}"]),
    ("ledger: {retention: 1h}", ["1: ledger.retention: must be at least 86400"]),
    ("ledger: on", ["1: ledger: expected a mapping (key: value)"]),
    ("server: {time_zone: Mars/Olympus}", [f"1: server.time_zone: {ZONE}"]),
    ("server: {time_zone: ../UTC}", [f"1: server.time_zone: {ZONE}"]),
    # prices and quotas
    ("models: {prices: {ours: {input: -1}}}", [f"1: models.prices.ours.input: {PRICE}"]),
    ("models: {prices: {ours: {output: 1}}}", ["1: models.prices.ours.input: not a valid value"]),
    (
        "models: {prices: {gpt-4o: {input: 1}}}",
        ["1: models.prices: gpt-4o is never sent, it is an alias of mistral-large-latest"],
    ),
    *(
        (f"teams:\n  a:\n    keys: [D]\n    quotas:\n      - {text}", [f"5: teams.a.quotas[0]{where}"])
        for text, where in [
            ("requests: 60/fortnight", f".requests: {LIMIT}"),
            ("requests: -60/minute", f".requests: {LIMIT}"),
            ("tokens: many", f".tokens: {LIMIT}"),
            ("spend: 5/month", ".spend: expected an amount in a window, as in 50 USD/month"),
            ("spend: 9999999 USD/month", ".spend: no limit can be as high as this"),
            ("concurrency: -1", ".concurrency: must be at least 0"),
            ("{requests: 5/day, tokens: 5/day}", f": {ONE_LIMIT}"),
            ("{mode: shadow}", f": {ONE_LIMIT}"),
            ("{requests: 5/day, per: user}", ".per: expected one of: team, key"),
            ("{requests: 5/day, mode: shadov}", ".mode: expected one of: enforce, shadow (did you mean 'shadow'?)"),
            (
                "{requests: 5/day, model: mistral-larg-latest}",
                ".model: no such model is known (did you mean 'mistral-large-latest'?); "
                "a price in models.prices makes one known",
            ),
            (
                "{spend: 5 USD/day, model: 'ft:mistral-small-2603:ours'}",
                ".model: can never count: its price is not known; give one in models.prices",
            ),
        ]
    ),
    (
        "teams: {a: {keys: [D], models: [codestral-*], quotas: [{requests: 5/day, model: mistral-embed}]}}",
        ["1: teams.a.quotas[0].model: can never match: `models` of this team does not allow it"],
    ),
    (
        "teams: {a: {keys: [D], quotas: [{requests: 5/day}, {requests: 9/day}]}}",
        ["1: teams.a.quotas[1]: limits what quotas[0] limits already"],
    ),
    (
        "teams: {a: {quotas: [{requests: 5/day, model: gpt-4o}, {requests: 9/day, model: mistral-large-2512}]}}",
        ["1: teams.a.quotas[1]: limits what quotas[0] limits already"],
    ),
    (
        "ledger: off\nteams: {a: {keys: [D], quotas: [{spend: 5 USD/day}]}}",
        [
            "2: teams.a.quotas[0].spend: needs a ledger or a shared store: "
            "what was spent would be forgotten at a restart"
        ],
    ),
    ("server: {drain: 60}", [f"1: server.drain: {DURATION}"]),
    ("server: {drain: }", [f"1: server.drain: {DURATION}"]),
    ("server: {drain: 9" + "9" * 400 + "d}", [f"1: server.drain: {DURATION}"]),
    ("server: {max_body: 32mb}", [f"1: server.max_body: {SIZE}"]),
    ("server: {max_body: '${DIGITS}B'}", [f"1: server.max_body: {SIZE}"]),
    ("server: {max_body: 0B}", ["1: server.max_body: must be at least 1"]),
    ("providers: {mistral: {http2: yes}}", ["1: providers.mistral.http2: expected true or false"]),
    ("providers: {mistral: {http2: 'true'}}", ["1: providers.mistral.http2: expected true or false, without quotes"]),
    # providers, and what is sent to which
    ("providers: {mistral: {type: openai}}", [f"1: providers.mistral.type: expected mistral, {OWN_NAME}"]),
    ("providers: {openai: {type: mistral}}", [f"1: providers.openai.type: expected openai, {OWN_NAME}"]),
    ("providers: {openai: {}}", []),
    ("providers: {openai: x}", ["1: providers.openai: expected a mapping (key: value)"]),
    ("providers: {eu: {type: mistral}, local: {type: openai}}", []),
    ("providers: {local: {type: opnai}}", [f"1: providers.local.type: {KINDS} (did you mean 'openai'?)"]),
    ("providers:\n  mistal: {http2: false}", [f"2: providers.mistal: {WHICH} (did you mean 'mistral'?)"]),
    ("providers:\n  local: {}", [f"2: providers.local: {WHICH}"]),
    ("providers: {Local: {type: openai}}", [f"1: providers.Local: {PROVIDER_NAME}"]),
    ("providers: {a/b: {type: openai}}", [f"1: providers.a/b: {PROVIDER_NAME}"]),
    ("models: {default: openai/gpt-4o}", [f"1: models.default: {STRAY}"]),
    (
        "models: {aliases: {best: opnai/x}}\nproviders: {openai: {}}",
        [f"1: models.aliases.best: {STRAY} (did you mean 'openai'?)"],
    ),
    ("models: {fallbacks: {a: [local/x]}}", [f"1: models.fallbacks.a[0]: {STRAY}"]),
    ("models: {fallbacks: {local/x: [a]}}", [f"1: models.fallbacks.local/x: {STRAY}"]),
    ("models: {prices: {local/x: {input: 1}}}", [f"1: models.prices.local/x: {STRAY}"]),
    ("models: {context: {local/x: sliding-window}}", [f"1: models.context.local/x: {STRAY}"]),
    ("models: {default: mistral/}", ["1: models.default: the name of a model follows that of its provider"]),
    ("models: {prices: {a: {input: 1, priority: -1}}}", ["1: models.prices.a.priority: must be at least 0"]),
    ("models: {fallbacks: {a: b}}", ["1: models.fallbacks.a: expected a list"]),
    ("models: {fallbacks: {a: []}}", ["1: models.fallbacks.a: the list must have at least 1"]),
    ("models:\n  fallbacks:\n    a: [b, c, b]", ["3: models.fallbacks.a[2]: would be asked twice"]),
    ("models: {fallbacks: {mistral-small-latest: [mistral-small-2603]}}", [f"1: {SMALL}[0]: would be asked twice"]),
    (
        "models:\n  fallbacks:\n    mistral-small-latest: [a]\n    mistral-small-2603: [a]",
        ["4: models.fallbacks.mistral-small-2603: mistral-small-latest is the same model"],
    ),
    ("models: {fallbacks: {a: ['b c']}}", [f"1: models.fallbacks.a[0]: {MODEL_NAME}"]),
    ("models: {prices: {a: {input: 1, context: 0}}}", ["1: models.prices.a.context: must be at least 1"]),
    ("teams: {a: {keys: [D], providers: [mistral]}}", []),
    ("teams: {a: {keys: [D], providers: []}}", ["1: teams.a.providers: the list must have at least 1"]),
    (
        "teams: {a: {keys: [D], providers: [mistrl]}}",
        ["1: teams.a.providers: no such provider: mistrl (did you mean 'mistral'?)"],
    ),
    ("teams: {a: {keys: [D], provider_keys: {mistral: sk-x}}}", [f"1: teams.a.provider_keys.mistral: {LITERAL}"]),
    (
        "teams: {a: {keys: [D], provider_keys: {openai: '${WORD}'}}}",
        ["1: teams.a.provider_keys.openai: no such provider"],
    ),
    (
        "teams: {a: {keys: ['${WORD}'], provider_keys: {mistral: '${WORD}'}}}",
        [f"1: teams.a.provider_keys.mistral: {THEIRS}"],
    ),
    (
        "teams: {a: {keys: ['sha256:H']}}\nproviders: {mistral: {api_keys: ['${WORD}']}}",
        [f"2: providers.mistral.api_keys[0]: {THEIRS}"],
    ),
    (
        "teams: {a: {keys: [D], quotas: [{requests: 5/day, model: openai/gpt-4o}]}}\nproviders: {openai: {}}",
        [],
    ),
    (
        "providers: {openai: {}}\n"
        "teams: {a: {keys: [D], providers: [mistral], quotas: [{requests: 5/day, model: openai/x}]}}",
        ["2: teams.a.quotas[0].model: can never match: `providers` of this team does not allow it"],
    ),
    ("providers: {mistral: {timeouts: {idle: 0s}}}", ["1: providers.mistral.timeouts.idle: must be more than 0"]),
    (
        "providers: {mistral: {transport: httpxx}}",
        ["1: providers.mistral.transport: expected one of: http1, aiohttp, httpx (did you mean 'httpx'?)"],
    ),
    ("providers:\n  mistral:\n    http2: true", ["2: providers.mistral: http2 and proxy_url need `transport: httpx`"]),
    ("models: {default_temperature: warm}", ["1: models.default_temperature: expected a number"]),
    ("models: {default_temperature: 1.6}", ["1: models.default_temperature: must be at most 1.5"]),
    ("models: {default_max_tokens: 1.0}", ["1: models.default_max_tokens: expected an integer"]),
    ("models: {default: ''}", ["1: models.default: expected one line of text"]),
    ("models: {aliases: {a: null}}", ["1: models.aliases.a: expected one line of text"]),
    ("models:\n  aliases:\n    a: b\n    c: c", ["4: models.aliases.c: an alias of itself"]),
    ("translation: {mode: off}", ["1: translation.mode: expected one of: lenient, strict"]),
    ("logging: {level: inf}", [f"1: logging.level: {LEVELS} (did you mean 'info'?)"]),
    # references
    ("server: {host: '${NONE}'}", ["1: server.host: environment variable NONE is not set"]),
    (
        "server: {host: '${N}.${O}'}",
        ["1: server.host: environment variable N is not set", "1: server.host: environment variable O is not set"],
    ),
    ("models: {default: '${NONE}'}", ["1: models.default: environment variable NONE is not set"]),
    ("server: {port: '${WORD}'}", ["1: server.port: expected an integer"]),
    ("server: {host: '${EMPTY}'}", ["1: server.host: expected one line of text"]),
    ("logging: {level: '${WORD}'}", [f"1: logging.level: {LEVELS}"]),
    # secrets and teams
    ("providers: {mistral: {api_keys: [sk-literal]}}", [f"1: providers.mistral.api_keys[0]: {LITERAL}"]),
    ("providers: {mistral: {api_keys: [D]}}", [f"1: providers.mistral.api_keys[0]: {LITERAL}"]),
    ("providers: {mistral: {api_keys: ['${NONE:-sk-literal}']}}", [f"1: providers.mistral.api_keys[0]: {LITERAL}"]),
    ("providers: {mistral: {api_keys: '${WORD}'}}", ["1: providers.mistral.api_keys: expected a list"]),
    (
        "providers: {mistral: {api_keys: ['${WORD}', '${WORD}']}}",
        ["1: providers.mistral.api_keys[1]: the same key as api_keys[0]"],
    ),
    (
        "server:\n  admin_keys: [sk-literal, '${NONE}', 'sha256:AA']",
        [
            f"2: server.admin_keys[0]: {LITERAL_KEY}",
            "2: server.admin_keys[1]: environment variable NONE is not set",
            f"2: server.admin_keys[2]: {SHA256}",
        ],
    ),
    ("server: {admin_keys: '${WORD}'}", ["1: server.admin_keys: expected a list"]),
    (
        "server:\n  admin_keys: ['${WORD}']\nteams:\n  a:\n    keys:\n      - sha256:H",
        ["6: teams.a.keys[0]: the same key as server.admin_keys[0]"],
    ),
    (
        "teams: {a: {keys: ['${WORD}']}}\nserver:\n  admin_keys: [D, '${WORD}']",
        ["3: server.admin_keys[1]: the same key as teams.a.keys[0]"],
    ),
    (
        "server: {admin_keys: ['${WORD}']}\nproviders: {mistral: {api_keys: ['${WORD}']}}\n"
        "teams: {a: {provider_keys: {mistral: '${WORD}'}}}",
        [
            f"2: providers.mistral.api_keys[0]: {THEIRS.replace('a team', 'an admin')}",
            f"3: teams.a.provider_keys.mistral: {THEIRS.replace('a team', 'an admin')}",
        ],
    ),
    ("teams:\n  a:\n    keys:\n      - sk-literal", [f"4: teams.a.keys[0]: {LITERAL_KEY}"]),
    ("teams: {a: {keys: [null]}}", [f"1: teams.a.keys[0]: {LITERAL_KEY}"]),
    ("teams: {a: {keys: [{sk-literal: x}]}}", ["1: teams.a.keys[0]: expected a single value"]),
    ("teams: {a: {keys: {sk-literal: x}}}", ["1: teams.a.keys: expected a list"]),
    ("teams: {a: {keys: ['sha256:AA']}}", [f"1: teams.a.keys[0]: {SHA256}"]),
    ("teams: {a: {keys: ['${EMPTY}']}}", ["1: teams.a.keys[0]: the secret is empty"]),
    ("teams: {a: {keys: [file:/none]}}", [f"1: teams.a.keys[0]: {NO_FILE}"]),
    ("ledger: off\nteams:\n  a:\n  b: {keys: []}", [f"3: teams.a.keys: {NO_KEY}", f"4: teams.b.keys: {NO_KEY}"]),
    ("teams: {a: {keys: [D], models: []}}", ["1: teams.a.models: the list must have at least 1"]),
    ("teams: {a: {keys: [D], models: }}", ["1: teams.a.models: expected a list"]),
    ("teams: {a b: {keys: [D]}}", [f"1: teams.'a b': {NO_TEAM_NAME}"]),
    (
        "teams:\n  a: {keys: [D]}\n  b:\n    keys:\n    - '${WORD}'\n    - D",
        ["6: teams.b.keys[1]: the same key as teams.a.keys[0]"],
    ),
    (
        "teams: {a: {keys: ['${WORD}']}, b: {keys: ['sha256:H']}}",
        ["1: teams.b.keys[0]: the same key as teams.a.keys[0]"],
    ),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_what_is_refused_and_where(refusals, text, expected):
    text = text.replace("D]", f"'{DIGEST}']").replace("- D", f"- {DIGEST}").replace("[D,", f"['{DIGEST}',")
    text = text.replace("sha256:H", "sha256:" + hashlib.sha256(b"a-word").hexdigest())
    assert refusals(text, {"WORD": "a-word", "EMPTY": "", "DIGITS": "9" * 5000}) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "server:\nproviders:\n  mistral:\n    timeouts:\nmodels:\n  aliases:\nteams:\n",
        "models: {default: null, default_max_tokens: ~, default_temperature: }",
        "models: {default: '${EMPTY}', default_max_tokens: '${NONE:-}'}",
        "providers: {mistral: {proxy_url: null}}",
    ],
)
def test_nothing_written_is_the_default(read, text):
    assert read(text, {"EMPTY": ""}) == Settings()


@pytest.mark.parametrize("text", ["ledger: off", "ledger: {url: off}", "ledger: 'off'"])
def test_no_ledger(read, text):
    assert read(text, {}).ledger.off
    assert not read("", {}).ledger.off


def test_a_model_that_only_prices_make_known_may_have_a_limit(refusals):
    prices = "models: {prices: {ours: {input: 1}}}"
    assert refusals(prices + "\nteams: {a: {quotas: [{spend: 5 USD/day, model: ours}]}}") == []


def test_one_team_may_name_a_key_twice(refusals):
    assert refusals(f"teams: {{a: {{keys: ['{DIGEST}', '{DIGEST}']}}}}") == []


def test_every_error_at_once_in_the_order_of_the_file(refusals):
    text = """
server:
  prot: 80
  port: 99999
providers:
  mistral:
    api_keys: [sk-literal, "${NONE}"]
    timeouts: {idle: soon}
teams:
  research:
    keys: ["${A}"]
  empty: {}
  other:
    keys: ["${A}"]
    log_content: maybe
models:
  aliases: {x: x}
  default_temperature: 9
  aliases: {}
tracing: {sample: 2}
"""
    assert refusals(text, {"A": "sk-a", "DEFAULT_MAX_TOKENS": "0"}) == [
        "3: server.prot: unknown key (did you mean 'port'?)",
        "4: server.port: must be at most 65535",
        f"7: providers.mistral.api_keys[0]: {LITERAL}",
        "7: providers.mistral.api_keys[1]: environment variable NONE is not set",
        "8: providers.mistral.timeouts.idle: expected a duration such as 250ms, 30s, 5m, 1h or 7d",
        "14: teams.other.keys[0]: the same key as teams.research.keys[0]",
        "15: teams.other.log_content: expected true, false, none, truncated or full",
        "17: models.aliases.x: an alias of itself",
        "18: models.default_temperature: must be at most 1.5",
        "19: models.aliases: given twice, first on line 17",
        "20: tracing.sample: must be at most 1",
        "environment: DEFAULT_MAX_TOKENS: must be at least 1",
    ]


def test_broken_yaml_is_one_problem(refusals):
    assert refusals("server: {port: x\nlogging: [\n", {"DEFAULT_MAX_TOKENS": "0"}) == [
        "2: not valid YAML: did not find expected ',' or '}', while parsing a flow mapping that begins on line 1"
    ]


def test_a_file_that_cannot_be_read(tmp_path):
    for path, reason in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SettingsError) as raised:
            load(path, {})
        assert str(raised.value) == f"{path}: cannot be read: {reason}"


def test_the_error_keeps_no_secret_alive(read):
    with pytest.raises(SettingsError) as raised:
        read("teams: {a: {keys: ['${A}'], log_content: maybe}}\nserver: {port: 99999}", {"A": "sk-secret"})
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None


def test_no_http_client_is_imported():
    clients = "{'httpx', 'httpx2', 'aiohttp', 'httptools', 'uvicorn'}"
    program = f"import sys, proxy.settings.load; print({clients} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# No text whatever may break the loader, and no problem may show a secret.

HIDDEN = "sk-HIDDEN-7f3a"
ENVIRON = {"KEY": HIDDEN, "WORDS": f"{HIDDEN} x", "URL": f"https://[{HIDDEN}]", "NUMBER": "7", "EMPTY": ""}
quickly = profile(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def complaints(read, text: str | bytes, environ=ENVIRON) -> str:
    try:
        return "" if isinstance(read(text, environ), Settings) else "nothing"
    except SettingsError as error:
        problems = [str(problem) for problem in error.problems]
    assert problems
    assert not any("\n" in problem or problem.endswith(": ") for problem in problems)
    return "\n".join(problems)


@quickly
@given(st.one_of(st.text(), st.binary()))
def test_any_text(read, text):
    complaints(read, text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


TOKENS = ["a", ":", " ", "\n", "  ", "- ", "[", "]", "{", "}", ",", "'", '"', "&a", "*a", "!!str ", "#", "|", ">", "?"]
TOKENS += ["%", "---", "...", "<<", "${", "${KEY}", "$${", "\t", "~", "server", "port", "teams", "keys", "file:/", "\0"]


@quickly
@given(st.lists(st.sampled_from(TOKENS), max_size=40).map("".join))
def test_any_tokens(read, text):
    complaints(read, text)


NAMES = ["server", "host", "port", "hosts", "max_body", "drain", "workers", "providers", "mistral", "api_keys", "type"]
NAMES += ["timeouts", "total", "base_url", "proxy_url", "http2", "models", "aliases", "default", "default_temperature"]
NAMES += ["teams", "keys", "log_content", "logging", "level", "content_max_chars", "translation", "mode", "store", "x"]
WORDS = [
    HIDDEN,
    "${KEY}",
    "x-${KEY}",
    "${WORDS}",
    "${URL}",
    "${KEY:-a}",
    f"${{NONE:-{HIDDEN}}}",
    "${NONE}",
    "${NUMBER}",
]
WORDS += ["${EMPTY}", "file:${KEY}", f"file:/{HIDDEN}", f"sha256:{HIDDEN}", "sha256:${KEY}", f"https://{HIDDEN}:x@h"]
WORDS += ["https://${KEY}/v1", f"https://h?{HIDDEN}", "30s", "1MB", "httpx", "off", "", "https://a"]
words = st.sampled_from(WORDS)

EVERYWHERE = [
    "server: {host: %}",
    "server: {port: %, workers: %}",
    "store: {url: %}",
    "server: {max_body: %, drain: %, hosts: [%]}",
    "providers: {mistral: {type: %, transport: %, http2: %}}",
    "providers: {mistral: {base_url: %, max_connections: %}}",
    "providers: {mistral: {api_keys: [%, %], timeouts: {idle: %}}}",
    "providers: {mistral: {proxy_url: %, http2: true}}",
    "models: {default: %, aliases: {a: %, '${KEY}': %}}",
    "teams: {a: {keys: [%], models: %, log_content: %}}",
    "teams: {a: {keys: [%]}, b: {keys: [%]}}",
    "logging: {level: %, content_max_chars: %}",
    "translation: %",
]
scalars = st.one_of(words, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
trees = st.recursive(
    scalars,
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(st.sampled_from(NAMES), below, max_size=4)),
    max_leaves=20,
)


@quickly
@given(st.dictionaries(st.sampled_from(NAMES), trees, max_size=5))
def test_any_tree(read, tree):
    text = complaints(read, yaml.safe_dump(tree))
    assert HIDDEN not in text
    assert "pydantic" not in text


mistral = {"base_url": words, "proxy_url": words, "api_keys": st.lists(words, max_size=2), "timeouts": trees}
team = {"keys": st.lists(words, max_size=3), "models": st.lists(words, max_size=2), "log_content": scalars}
whole = st.fixed_dictionaries(
    {},
    optional={
        "server": st.fixed_dictionaries({}, optional=dict.fromkeys(["host", "port", "drain", "max_body"], scalars)),
        "providers": st.fixed_dictionaries({"mistral": st.fixed_dictionaries({}, optional=mistral)}),
        "teams": st.dictionaries(st.sampled_from("abc"), st.fixed_dictionaries({}, optional=team), max_size=3),
        "models": st.fixed_dictionaries({}, optional={"default": words, "aliases": st.just({"a": "a", "b": "${KEY}"})}),
        "logging": st.fixed_dictionaries({}, optional={"level": words, "content_max_chars": scalars}),
    },
)


@pytest.mark.parametrize("text", EVERYWHERE)
def test_no_value_anywhere_is_shown(read, text):
    shown = [complaints(read, text.replace("%", f"'{word}'")) for word in WORDS]
    assert any(shown)
    assert HIDDEN not in "".join(shown)


@quickly
@given(whole, st.dictionaries(st.sampled_from(["MISTRAL_BASE_URL", "DEFAULT_MODEL", "MISTRAL_API_KEY"]), words))
def test_no_problem_shows_a_secret(read, tree, environ):
    assert HIDDEN not in complaints(read, yaml.safe_dump(tree), ENVIRON | environ)


@quickly
@given(st.data())
def test_a_damaged_file(read, data):
    text = (Path(module.__file__).parents[2] / "proxy.yaml.example").read_text()
    cut = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    complaints(read, text[: cut[0]] + data.draw(st.sampled_from(["", *TOKENS])) + text[cut[1] :])
