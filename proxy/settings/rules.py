"""What can be said of a setting only with the rest at hand: quotas that would never match or never count, teams that
nobody could be in, chains that lead nowhere, keys in the wrong place. Their author cannot have meant them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.model import Price, is_name
from proxy.core.provider import MAIN
from proxy.core.quota import Rule
from proxy.core.secret import Secret
from proxy.core.team_key import is_whole
from proxy.settings.model import Settings, Team
from proxy.settings.problems import Path, hint
from proxy.stages.auth import allow_list
from proxy.stages.quota import Quota
from proxy.upstream.config import TYPES


def catalogue_of(settings: Settings) -> Catalogue:
    """The models that these settings know."""
    models = settings.models
    prices = {
        name: Price(
            one.input, one.output, one.cached, one.context, None if one.priority is None else round(one.priority * 100)
        )
        for name, one in models.prices.items()
    }
    named = [*chain(*models.fallbacks.values()), *([models.default] if models.default else [])]
    return Catalogue(data.read_once("models.yaml"), models.aliases, prices, settings.providers.keys(), named)


def rules_of(team: Team, catalogue: Catalogue) -> list[Rule]:
    """The team's quotas, of models by the catalogue's ids: by whatever name one is asked for, it is the same model."""
    return [one.rule(one.model and catalogue.model(catalogue.resolve(one.model)).id) for one in team.quotas]


def impossible(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Each price, key list and rule that cannot be meant, by its place, and the reason."""
    try:
        catalogue = catalogue_of(settings)
    except ValueError as error:
        yield ("models", "prices"), str(error).removeprefix("prices: ")
        return
    yield from _providers(settings)
    yield from _strays(settings, catalogue)
    yield from _chains(settings, catalogue)
    forgetful = settings.ledger.off and not settings.store.shared
    for name, team in settings.teams.items():
        yield from _payers(name, team, settings)
        if not team.keys and settings.ledger.off:
            yield ("teams", name, "keys"), "a team needs at least one key: without a ledger none can be issued"
        limited: dict[tuple[object, ...], int] = {}
        for at, (one, rule) in enumerate(zip(team.quotas, rules_of(team, catalogue), strict=True)):
            path: Path = ("teams", name, "quotas", at)
            # Of two limits on the same thing one would never be reached, and both would count.
            first = limited.setdefault((rule.unit, rule.window, rule.per_key, rule.model, rule.shadow), at)
            if first != at:
                yield path, f"limits what quotas[{first}] limits already"
            if one.spend and forgetful:
                yield (
                    (*path, "spend"),
                    "needs a ledger or a shared store: what was spent would be forgotten at a restart",
                )
            if one.model and (reason := _never_counts(one, one.model, team, catalogue)):
                yield (*path, "model"), reason


def _providers(settings: Settings) -> Iterator[tuple[Path, str]]:
    for name, provider in settings.providers.items():
        path: Path = ("providers", name)
        if "type" not in provider.model_fields_set:
            yield path, f"say which API it speaks: {' or '.join(f'type: {one}' for one in TYPES)}{hint(name, TYPES)}"
        elif name in TYPES and provider.type != name:
            yield (*path, "type"), f"expected {name}, as it is called; another one has a name of its own"
        first: dict[bytes, int] = {}
        for at, key in enumerate(provider.api_keys):
            if reason := _wrong_key(key, settings):
                yield (*path, "api_keys", at), reason
            elif first.setdefault(key.digest(), at) != at:
                yield (*path, "api_keys", at), f"the same key as api_keys[{first[key.digest()]}]"


def _payers(name: str, team: Team, settings: Settings) -> Iterator[tuple[Path, str]]:
    for provider in team.providers or ():
        if provider not in settings.providers:
            yield ("teams", name, "providers"), f"no such provider: {provider}{hint(provider, settings.providers)}"
    for provider, key in team.provider_keys.items():
        path: Path = ("teams", name, "provider_keys", provider)
        if provider not in settings.providers:
            yield path, f"no such provider{hint(provider, settings.providers)}"
        if reason := _wrong_key(key, settings):
            yield path, reason


def _wrong_key(key: Secret, settings: Settings) -> str | None:
    """Why a provider must not have this key."""
    digest = key.digest()
    owner = None
    if is_whole(key.reveal().encode()) or any(
        digest == one.digest for team in settings.teams.values() for one in team.keys
    ):
        owner = "a team"
    elif any(digest == one.digest for one in settings.server.admin_keys):
        owner = "an admin"
    return owner and f"this is {owner}'s key to this proxy: it would be sent to the provider"


def _strays(settings: Settings, catalogue: Catalogue) -> Iterator[tuple[Path, str]]:
    """Names that begin with a provider's that does not exist."""
    models = settings.models
    named: list[tuple[Path, str]] = [(("models", "aliases", name), to) for name, to in models.aliases.items()]
    named += [(("models", "prices", name), name) for name in models.prices]
    named += [(("models", "context", name), name) for name in models.context]
    named += [(("models", "default"), models.default)] if models.default else []
    for name, others in models.fallbacks.items():
        named.append((("models", "fallbacks", name), name))
        named += [(("models", "fallbacks", name, at), other) for at, other in enumerate(others)]
    for path, name in named:
        provider, rest = catalogue.place(catalogue.resolve(name))
        if provider not in settings.providers:
            yield (
                path,
                f"no such provider, which the part before a model's slash is{hint(provider, settings.providers)}",
            )
        elif not is_name(rest):
            yield path, "the name of a model follows that of its provider"


def _chains(settings: Settings, catalogue: Catalogue) -> Iterator[tuple[Path, str]]:
    seen: dict[str, str] = {}
    for name, others in settings.models.fallbacks.items():
        path: Path = ("models", "fallbacks", name)
        model = catalogue.model(catalogue.resolve(name)).id
        first = seen.setdefault(model, name)
        if first != name:
            yield path, f"{first} is the same model"
        ids = [model]
        for at, other in enumerate(others):
            found = catalogue.model(catalogue.resolve(other)).id
            if found in ids:
                yield (*path, at), "would be asked twice"
            ids.append(found)


def _never_counts(one: Quota, name: str, team: Team, catalogue: Catalogue) -> str | None:
    sent = catalogue.resolve(name)
    model = catalogue.model(sent)
    priced = model.input_price is not None or model.output_price is not None
    provider, _ = catalogue.place(sent)
    if not (model.known or priced or provider != MAIN or sent.startswith("ft:")):
        names = (known for row in catalogue.models for known in (row.id, *row.names))
        return f"no such model is known{hint(name, names)}; a price in models.prices makes one known"
    if team.providers and provider not in team.providers:
        return "can never match: `providers` of this team does not allow it"
    if not any(map(allow_list(team.models, None, catalogue), {model.id, *model.names, sent})):
        return "can never match: `models` of this team does not allow it"
    return None if priced or not one.spend else "can never count: its price is not known; give one in models.prices"
