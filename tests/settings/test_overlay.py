from __future__ import annotations

import re

import pytest

from proxy.settings.load import SettingsError, load
from proxy.settings.overlay import FALLBACKS

EVERY = {
    "MISTRAL_API_KEY": "sk-mistral",
    "OPENAI_API_KEY": "sk-openai",
    "MISTRAL_BASE_URL": "https://eu.example.com",
    "MISTRAL_TIMEOUT_SECS": "2.5",
    "MISTRAL_MAX_RETRIES": "4",
    "MISTRAL_LOG_LEVEL": "WARN",
    "CORS_ORIGINS": "https://a.example, http://localhost:5173",
    "DEFAULT_MODEL": "small",
    "DEFAULT_MAX_TOKENS": "64",
    "DEFAULT_TEMPERATURE": "1",
}


def option(settings, path):
    """The value at a dotted path."""
    for step in re.findall(r"\w+", path):
        if isinstance(settings, dict):
            settings = settings[step]
        else:
            settings = settings[int(step)] if step.isdigit() else getattr(settings, step)
    return settings


def problems(environ, options=None):
    with pytest.raises(SettingsError) as raised:
        load(None, environ, options)
    return [str(problem) for problem in raised.value.problems]


def asking_for_openai(folder):
    file = folder / "proxy.yaml"
    file.write_text("providers: {openai: {}}")
    return file


def test_the_key_that_apps_of_the_proxy_have_is_not_taken_unasked(tmp_path):
    assert "openai" not in load(None, EVERY).providers
    (key,) = load(asking_for_openai(tmp_path), EVERY).providers["openai"].api_keys
    assert key.reveal() == "sk-openai"


def test_every_variable_reaches_its_option(tmp_path):
    settings = load(asking_for_openai(tmp_path), EVERY)
    assert EVERY.keys() == FALLBACKS.keys()
    values = {name: option(settings, path) for name, path in FALLBACKS.items()}
    assert values.pop("MISTRAL_API_KEY").reveal() == "sk-mistral"
    assert values.pop("OPENAI_API_KEY").reveal() == "sk-openai"
    assert values == {
        "MISTRAL_BASE_URL": "https://eu.example.com",
        "MISTRAL_TIMEOUT_SECS": 2.5,
        "MISTRAL_MAX_RETRIES": 5,
        "MISTRAL_LOG_LEVEL": "warning",
        "CORS_ORIGINS": ["https://a.example", "http://localhost:5173"],
        "DEFAULT_MODEL": "small",
        "DEFAULT_MAX_TOKENS": 64,
        "DEFAULT_TEMPERATURE": 1.0,
    }


def test_the_file_wins_over_the_environment(read):
    text = """
providers: {mistral: {api_keys: ["${OTHER}"], base_url: http://127.0.0.1:1, timeouts: {total: 5m}}}
models: {default: file, default_max_tokens: null, default_temperature: 0}
logging: {level: error}
"""
    settings = read(text, {**EVERY, "OTHER": "sk-other"})
    assert settings.mistral.api_keys[0].reveal() == "sk-other"
    assert settings.mistral.base_url == "http://127.0.0.1:1"
    assert settings.mistral.timeouts.total == 300.0
    assert settings.models.default == "file"
    assert settings.models.default_max_tokens is None
    assert settings.models.default_temperature == 0.0
    assert settings.logging.level == "error"


def test_the_environment_completes_what_the_file_leaves_out(read):
    for text in ("providers:\nlogging:\n", "providers: {mistral: {timeouts: {idle: 1s}}}", "server: {port: 1}", ""):
        settings = read(text, EVERY)
        assert settings.mistral.api_keys[0].reveal() == "sk-mistral"
        assert settings.mistral.timeouts.total == 2.5
        assert settings.logging.level == "warning"


def test_c18_origins_stand_between_commas(read):
    assert load(None, {"CORS_ORIGINS": " https://a.example ,,https://b.example,"}).server.cors_origins == [
        "https://a.example",
        "https://b.example",
    ]
    assert load(None, {"CORS_ORIGINS": "*"}).server.cors_origins == ["*"]
    assert load(None, {"CORS_ORIGINS": ","}).server.cors_origins == []
    assert read("server: {cors_origins: []}", EVERY).server.cors_origins == []


def test_an_empty_variable_is_unset():
    assert load(None, dict.fromkeys(EVERY, "")) == load(None, {})


def test_a_variable_the_file_overrules_is_not_looked_at(read):
    assert read("models: {default_max_tokens: 5}", {"DEFAULT_MAX_TOKENS": "many"}).models.default_max_tokens == 5


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("MISTRAL_API_KEY", "a b", "a secret is printable ASCII without spaces or line breaks"),
        ("MISTRAL_API_KEY", "file:/none", "the secret file does not exist or is not a regular file"),
        ("MISTRAL_BASE_URL", "ftp://x", "expected a URL such as https://api.mistral.ai"),
        ("MISTRAL_TIMEOUT_SECS", "30s", "expected a number of seconds such as 30"),
        ("MISTRAL_TIMEOUT_SECS", "-1", "expected a number of seconds such as 30"),
        ("MISTRAL_TIMEOUT_SECS", "0", "must be more than 0"),
        ("MISTRAL_MAX_RETRIES", "-1", "expected a number of retries from 0 to 9"),
        ("MISTRAL_MAX_RETRIES", "10", "expected a number of retries from 0 to 9"),
        ("MISTRAL_LOG_LEVEL", "loud", "expected one of: debug, info, warning, error"),
        ("MISTRAL_LOG_LEVEL", "DEBUGG", "expected one of: debug, info, warning, error (did you mean 'debug'?)"),
        ("CORS_ORIGINS", "https://a.example, *", '"*" stands for every origin, so it stands alone'),
        ("CORS_ORIGINS", "null", "expected one line of text"),
        (
            "CORS_ORIGINS",
            "https://a b",
            'expected an origin such as https://chat.example.com, without a path, or "*" alone',
        ),
        ("DEFAULT_MODEL", "a\nb", "expected one line of text"),
        ("DEFAULT_MAX_TOKENS", "many", "expected an integer"),
        ("DEFAULT_MAX_TOKENS", "0", "must be at least 1"),
        ("DEFAULT_TEMPERATURE", "hot", "expected a number"),
        ("DEFAULT_TEMPERATURE", "2", "must be at most 1.5"),
    ],
)
def test_a_bad_variable_is_named(name, value, reason):
    assert problems({name: value}) == [f"environment: {name}: {reason}"]


def test_a_variable_holds_no_references():
    assert load(None, {"DEFAULT_MODEL": "${HOME}", "HOME": "/root"}).models.default == "${HOME}"


def test_variables_of_other_programs_are_left_alone():
    assert load(None, {"OPENAI_API_KEY": "sk", "ENVIRONMENT": "x"}) == load(None, {})


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "proxy.yaml"
    file.write_text("server:\n  host: 10.0.0.1\n  port: 99999\n  drain: 1s\n")
    settings = load(file, {}, {"server.host": "::1", "server.port": 0})
    assert (settings.server.host, settings.server.port, settings.server.drain) == ("::1", 0, 1.0)
    assert load(None, {}, {"server.port": 9}).server.port == 9


def test_a_bad_option_is_named():
    assert problems({}, {"server.host": "a b", "server.workers": 0, "server.port": 70000}) == [
        "command line: --host: expected a host name or an IP address, without port or brackets",
        "command line: --port: must be at most 65535",
        "command line: --workers: must be at least 1",
    ]


def test_nothing_is_put_into_what_is_no_section(refusals):
    expected = ["1: providers: expected a mapping (key: value)", "2: logging: expected a mapping (key: value)"]
    assert refusals("providers: [x]\nlogging: off\n", EVERY) == expected
    assert refusals("- x\n", EVERY) == ["1: expected a mapping (key: value)"]
