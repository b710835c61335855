from __future__ import annotations

import os

import pytest

from proxy.core.secret import Secret
from proxy.settings.references import MAX_SECRET_FILE, Unresolved, expand, read_secret, refers
from proxy.settings.references import secret as secret_of

ENVIRON = {"A": "one", "EMPTY": "", "NESTED": "${A} $${A}", "_x9": "two", "DIGEST": "sha256:" + "0" * 64}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("", ""),
        ("plain", "plain"),
        ("${A}", "one"),
        ("a-${A}-${_x9}", "a-one-two"),
        ("${A:-other}", "one"),
        ("${EMPTY}", ""),
        ("${EMPTY:-other}", "other"),
        ("${NONE:-other}", "other"),
        ("${NONE:-}", ""),
        ("${NONE:-a:-b ${}", "a:-b ${"),
        ("${NESTED}", "${A} $${A}"),
        ("$${A}", "${A}"),
        ("$${A}${A}", "${A}one"),
        ("$A $$ $ 5$", "$A $$ $ 5$"),
    ],
)
def test_expand(text, expanded):
    assert expand(text, ENVIRON) == expanded


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("${NONE}", ["environment variable NONE is not set"]),
        ("${B}${A}${C}", ["environment variable B is not set", "environment variable C is not set"]),
        ("${B}${B}", ["environment variable B is not set"]),
        ("${", ["expected ${NAME} or ${NAME:-default}; a literal ${ is written $${"]),
        ("${}", ["expected ${NAME} or ${NAME:-default}; a literal ${ is written $${"]),
        ("${9A}", ["expected ${NAME} or ${NAME:-default}; a literal ${ is written $${"]),
        ("${A-b}", ["expected ${NAME} or ${NAME:-default}; a literal ${ is written $${"]),
    ],
)
def test_what_cannot_be_expanded(text, reasons):
    with pytest.raises(Unresolved) as raised:
        expand(text, ENVIRON)
    assert list(raised.value.reasons) == reasons


@pytest.mark.parametrize(
    ("text", "answer"), [("${A}", True), ("x${", True), ("$${A}", False), ("$A", False), ("", False)]
)
def test_refers(text, answer):
    assert refers(text) is answer


def secret(text, environ, *, given, digests):
    return secret_of(text, environ, lambda file: read_secret(file).text(), given=given, digests=digests)


def revealed(text, *, environ=ENVIRON, given=False, digests=False):
    value = secret(text, environ, given=given, digests=digests)
    assert isinstance(value, Secret)
    return value.reveal()


def test_a_secret_comes_from_the_environment():
    assert revealed("${A}") == "one"
    assert revealed("team-${A}") == "team-one"
    assert revealed("sk-given", given=True) == "sk-given"
    assert revealed("${NESTED}", environ={"NESTED": "${A}"}) == "${A}"


@pytest.mark.parametrize("content", [b"sk-1", b"sk-1\n", b"sk-1\r\n"])
def test_a_secret_comes_from_a_file(secret_file, content):
    text = secret_file(content)
    assert revealed(text) == "sk-1"
    assert revealed("${FILE}", environ={"FILE": text}) == "sk-1"
    assert revealed(text, given=True) == "sk-1"
    assert revealed("file:${FOLDER}/secret", environ={"FOLDER": os.path.dirname(text[5:])}) == "sk-1"
    assert revealed(f"${{NONE:-{text}}}") == "sk-1"


@pytest.mark.parametrize(
    "text", ["sk-1", "", "sha256:00", "$${A}", "${NONE:-sk-1}", "${A:-sk-1}", "${A}${NONE:-x}", "${NONE:-sha256:00}"]
)
def test_what_the_file_says_itself_is_no_secret(text):
    assert secret(text, ENVIRON, given=False, digests=False) == text


def test_a_digest_may_come_from_anywhere(secret_file):
    digest = ENVIRON["DIGEST"]
    texts = [digest, "${DIGEST}", "${NONE:-" + digest + "}", secret_file(digest.encode())]
    assert [secret(text, ENVIRON, given=False, digests=True) for text in texts] == [digest] * 4
    assert revealed("${DIGEST}") == digest  # where no digest is taken, it is a key like any other


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${NONE}", "environment variable NONE is not set"),
        ("${EMPTY}", "the secret is empty"),
        ("${NONE:-}", "the secret is empty"),
        ("${SPACE}", "a secret is printable ASCII without spaces or line breaks"),
        ("${LINE}", "a secret is printable ASCII without spaces or line breaks"),
        ("${UMLAUT}", "a secret is printable ASCII without spaces or line breaks"),
        ("file:", "expected file: and an absolute path"),
        ("file:secret", "expected file: and an absolute path"),
        ("file:/", "the secret file does not exist or is not a regular file"),
        ("file:/none/such", "the secret file does not exist or is not a regular file"),
        ("file:/dev/zero", "the secret file does not exist or is not a regular file"),
        ("file:/a\0b", "the secret file does not exist or is not a regular file"),
        ("file:/" + "x" * 5000, "the secret file cannot be read: File name too long"),
    ],
)
def test_what_cannot_be_had(text, reason):
    environ = {"EMPTY": "", "SPACE": "sk 1", "LINE": "sk\n1", "UMLAUT": "skö"}
    with pytest.raises(Unresolved) as raised:
        secret(text, environ, given=False, digests=False)
    assert raised.value.reasons == (reason,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the secret is empty"),
        (b"\n", "the secret is empty"),
        (b"a\n\n", "a secret is printable ASCII without spaces or line breaks"),
        (b" a", "a secret is printable ASCII without spaces or line breaks"),
        (b"\xff\xfe", "a secret is printable ASCII without spaces or line breaks"),
        (b"x" * (MAX_SECRET_FILE + 1), "the secret file is larger than 65,536 bytes"),
    ],
)
def test_a_file_that_holds_no_secret(secret_file, content, reason):
    with pytest.raises(Unresolved) as raised:
        secret(secret_file(content), {}, given=False, digests=False)
    assert raised.value.reasons == (reason,)
