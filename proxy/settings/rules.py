"""What can be said of teams only with the rest at hand: quotas that would never match or never count, and teams that
nobody could be in, which their author cannot have meant."""

from __future__ import annotations

from collections.abc import Iterator

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.model import Price
from proxy.core.quota import Rule
from proxy.settings.model import Settings, Team
from proxy.settings.problems import Path, hint
from proxy.stages.auth import allow_list
from proxy.stages.quota import Quota


def catalogue_of(settings: Settings) -> Catalogue:
    """The models that these settings know."""
    prices = {name: Price(one.input, one.output, one.cached) for name, one in settings.models.prices.items()}
    return Catalogue(data.read_once("models.yaml"), settings.models.aliases, prices)


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
    forgetful = settings.ledger.off and not settings.store.shared
    for name, team in settings.teams.items():
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


def _never_counts(one: Quota, name: str, team: Team, catalogue: Catalogue) -> str | None:
    sent = catalogue.resolve(name)
    model = catalogue.model(sent)
    priced = model.input_price is not None or model.output_price is not None
    if not (model.known or priced or sent.startswith("ft:")):
        names = (known for row in catalogue.models for known in (row.id, *row.names))
        return f"no such model is known{hint(name, names)}; a price in models.prices makes one known"
    if not any(map(allow_list(team.models), {model.id, *model.names, sent})):
        return "can never match: `models` of this team does not allow it"
    return None if priced or not one.spend else "can never count: its price is not known; give one in models.prices"
