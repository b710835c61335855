"""Which model is meant, and whether the team may use it."""

from __future__ import annotations

from collections.abc import Awaitable

from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.config import ModelName, Strict
from proxy.core.endpoint import Endpoint, ModelFrom
from proxy.core.errors import BadRequest, InvalidType, MissingParameter, ModelNotAllowed, ModelNotFound
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.model import is_name
from proxy.core.services import Middleware, Services
from proxy.core.table import type_name


class Config(Strict):
    """`models` of proxy.yaml. Aliases are merged over the shipped ones of config/models.yaml.

    `default_max_tokens` and `default_temperature` are used when a chat request names none.
    """

    default: ModelName | None = None
    aliases: dict[ModelName, ModelName] = Field(default_factory=dict)
    default_max_tokens: int | None = Field(None, ge=1)
    default_temperature: float | None = Field(None, ge=0, le=1.5)


def build(config: Config, endpoint: Endpoint, services: Services) -> Middleware | None:
    if endpoint.model is ModelFrom.NOWHERE:
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Model(app, config.default, endpoint.model is ModelFrom.PATH, services)

    return middleware


class Model:
    def __init__(self, app: ASGIApp, default: str | None, in_path: bool, services: Services) -> None:
        self._app = app
        self._default = default
        self._in_path = in_path
        self._resolve = services.catalogue.resolve
        self._place = services.catalogue.place
        self._providers = services.catalogue.providers

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        asked = scope["path_params"]["id"] if self._in_path else self._from_body(exchange)
        if not is_name(asked):
            raise BadRequest("'model' is not a valid model name.", param="model")
        exchange.model_asked = asked
        exchange.model = self._resolve(asked)
        provider, sent_as = self._place(exchange.model)
        # Never taken for a name of the main provider's: what is meant for another one must not get there.
        if provider not in self._providers:
            raise ModelNotFound(
                "The model's name begins with that of a provider, and there is none such.", param="model"
            )
        if not is_name(sent_as):
            raise ModelNotFound("Behind the provider's name there is no valid name of a model.", param="model")
        exchange.provider, exchange.sent_as = provider, sent_as
        if exchange.team and not exchange.team.allows(exchange.model):
            raise ModelNotAllowed(
                f"Team '{exchange.team.name}' may not use the model '{exchange.model}'.", param="model"
            )
        return self._app(scope, receive, send)

    def _from_body(self, exchange: Exchange) -> str:
        asked = exchange.body.get("model") if exchange.body else None
        if asked is None:
            asked = self._default
        if asked is None:
            raise MissingParameter("Missing required parameter: 'model'.", param="model")
        if not isinstance(asked, str):
            raise InvalidType(
                f"Invalid type for 'model': expected a string, but got {type_name(asked)}.", param="model"
            )
        return asked
