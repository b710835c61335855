from __future__ import annotations

import pytest

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.errors import BadRequest, InvalidType, MissingParameter, ModelNotAllowed, ModelNotFound
from proxy.core.exchange import Team
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODEL, MODELS
from proxy.stages import model
from tests.asgi import call, exchange, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"), {"house": "mistral-small-latest"})
EVERYTHING = Team("t", lambda name: True)


async def ask(body: object, default: str | None = None, team: Team = EVERYTHING, endpoint=EMBEDDINGS, **scope):
    stage = model.build(model.Config(default=default), endpoint, services(catalogue=CATALOGUE))
    assert stage
    found = exchange(body=body, team=team)
    await call(stage(ok), exchange=found, **scope)
    return found.model_asked, found.model


def test_an_endpoint_about_no_model_has_no_such_stage() -> None:
    assert model.build(model.Config(), MODELS, services()) is None


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("mistral-small-latest", "mistral-small-latest"),
        ("house", "mistral-small-latest"),
        ("gpt-4o", "mistral-large-latest"),
        ("text-embedding-3-small", "mistral-embed"),
        ("made-up", "made-up"),
    ],
)
async def test_names_are_resolved(asked: str, served: str) -> None:
    assert await ask({"model": asked}) == (asked, served)


async def test_the_default_is_for_requests_that_name_none() -> None:
    assert await ask({}, default="house") == ("house", "mistral-small-latest")
    assert await ask({"model": None}, default="house") == ("house", "mistral-small-latest")
    assert await ask({"model": "codestral-latest"}, default="house") == ("codestral-latest", "codestral-latest")


async def test_no_name_and_no_default() -> None:
    with pytest.raises(MissingParameter) as caught:
        await ask({})
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", [1, True, ["a"], {"a": 1}, 1.5])
async def test_a_name_is_a_string(name: object) -> None:
    with pytest.raises(InvalidType) as caught:
        await ask({"model": name})
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["", "a b", "a\r\nx: y", "é", "x" * 257, "../admin", "a/../b", "\x00"])
async def test_a_name_must_fit_a_header_and_a_path(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await ask({"model": name})
    assert caught.value.param == "model"
    assert name == "" or name not in caught.value.message


async def test_the_allow_list_is_asked_with_the_served_name() -> None:
    team = Team("narrow", lambda name: name == "mistral-small-latest")
    assert (await ask({"model": "house"}, team=team))[1] == "mistral-small-latest"
    with pytest.raises(ModelNotAllowed) as caught:
        await ask({"model": "gpt-4o"}, team=team)
    assert (caught.value.status, caught.value.param) == (403, "model")
    assert "narrow" in caught.value.message


async def test_the_name_in_a_path() -> None:
    assert await ask(None, endpoint=MODEL, path_params={"id": "gpt-4o"}) == ("gpt-4o", "mistral-large-latest")


@pytest.mark.parametrize("name", ["openai/gpt-4o", "OpenAI/gpt-4o", "local/x", "/x", "x/", "mistral/", "openai/a/b"])
async def test_what_is_meant_for_another_provider_never_gets_to_the_main_one(name: str) -> None:
    found = exchange(body={"model": name}, team=EVERYTHING)
    stage = model.build(model.Config(), EMBEDDINGS, services(catalogue=CATALOGUE))
    assert stage
    with pytest.raises(ModelNotFound) as error:
        await call(stage(ok), exchange=found)
    assert error.value.param == "model"
    assert name not in error.value.message
    assert found.provider == "mistral"  # nobody is called by what the client has made up, in metrics neither


async def test_a_providers_name_alone_is_no_model_and_the_error_says_so() -> None:
    catalogue = Catalogue(data.read("models.yaml"), providers=("mistral", "openai"))
    stage = model.build(model.Config(), EMBEDDINGS, services(catalogue=catalogue))
    assert stage
    for name, reason in {"openai/": "Behind the provider's name", "opnai/x": "there is none such"}.items():
        with pytest.raises(ModelNotFound, match=reason):
            await call(stage(ok), exchange=exchange(body={"model": name}, team=EVERYTHING))


async def test_a_model_is_found_at_its_provider() -> None:
    catalogue = Catalogue(data.read("models.yaml"), {"best": "openai/gpt-4o"}, providers=("mistral", "openai"))
    stage = model.build(model.Config(), EMBEDDINGS, services(catalogue=catalogue))
    assert stage
    found = exchange(body={"model": "best"}, team=EVERYTHING)
    await call(stage(ok), exchange=found)
    assert (found.model, found.provider, found.sent_as) == ("openai/gpt-4o", "openai", "gpt-4o")
