from __future__ import annotations

import pytest

from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.mistral.refused import Issue
from proxy.providers.mistral.spelling import param, spelled


def asking(**asked):
    return Context(model=Model("m"), asked=asked)


@pytest.mark.parametrize(
    ("field", "asked", "name"),
    [
        ("random_seed", {"seed": 1}, "seed"),
        ("random_seed", {}, "seed"),
        ("random_seed", {"random_seed": 1}, "random_seed"),
        ("output_dimension", {"dimensions": 1}, "dimensions"),
        ("output_dimension", {"output_dimension": 1}, "output_dimension"),
        ("max_tokens", {"max_tokens": 1}, "max_tokens"),
        ("max_tokens", {"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ("max_tokens", {"max_tokens": 1, "max_completion_tokens": None}, "max_tokens"),
        ("messages", {"input": "x"}, "input"),
        ("messages", {"messages": []}, "messages"),
        ("tools", {"functions": []}, "functions"),
        ("temperature", {"temperature": 1}, "temperature"),
        ("temperature", {}, "temperature"),
    ],
)
def test_a_field_is_called_what_the_client_called_it(field, asked, name):
    assert spelled(field, asking(**asked)) == name


@pytest.mark.parametrize(
    ("loc", "path"),
    [
        (("temperature",), "temperature"),
        (("random_seed",), "seed"),
        (("messages", 2, "user", "content"), "messages[2].content"),
        (("messages", 2, "user", "content", "str"), "messages[2].content"),
        (
            ("messages", 0, "user", "content", "list[tagged-union[…]]", 1, "image_url", "image_url", "ImageURL", "url"),
            "messages[0].content[1].image_url.url",
        ),
        (("messages", 0, "user", "content", "list[…]", 0, "text", "text"), "messages[0].content[0].text"),
        (("messages", 1, "assistant", "tool_calls", 0, "function", "name"), "messages[1].tool_calls[0].function.name"),
        (("input", "list[str]", 3), "input[3]"),
        (("tool_choice", "ToolChoice", "function"), "tool_choice.function"),
        (("response_format", "json_schema", "schema"), "response_format.json_schema.schema"),
        ((57,), None),
        ((), None),
    ],
)
def test_a_path(loc, path):
    assert param(Issue("missing", loc, ""), asking()) == path


def test_an_unknown_key_is_named_whatever_it_looks_like():
    assert param(Issue("extra_forbidden", ("messages", 0, "user", "text"), ""), asking()) == "messages[0].text"
    assert param(Issue("extra_forbidden", ("metadata", "My Key"), ""), asking()) == "metadata.My Key"
    assert param(Issue("extra_forbidden", ("messages", 0, "user"), ""), asking()) == "messages[0].user"


def test_a_path_is_short_and_on_one_line():
    path = param(Issue("extra_forbidden", ("a", "é\r\n" + "x" * 300), ""), asking())
    assert path is not None
    assert path.startswith("a.\\xe9\\r\\nxxx")
    assert len(path) < 130


def test_no_issue_is_no_param():
    assert param(None, asking()) is None
