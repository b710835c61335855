"""The models the simulator serves: facts, from the API's own list (August 2026) and the vendors' pages since.

Which hosted model has which tokenizer is not published for all; the families here are chosen so that each set of
conversation rules is met by some model (v11 insists on nine-character tool call ids).
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

_CHAT = "completion_chat function_calling"
_SEEING = f"{_CHAT} vision fine_tuning"
_REASONING = f"{_CHAT} vision reasoning"
_OTHER_ABILITIES = "completion_fim ocr classification moderation unified_resources"
_AUDIO_ABILITIES = "audio audio_transcription audio_transcription_realtime audio_speech"
_ABILITIES = f"{_SEEING} reasoning {_OTHER_ABILITIES} {_AUDIO_ABILITIES}".split()


class Model(Struct, frozen=True):
    """One model under all its names, the canonical one first. `context` in tokens.

    `family`: the tokenizer version, hence the conversation rules (11, 13, 15); `efforts`: the reasoning efforts it
    takes; `dialect`: how its streams look (stream.py); `dimensions`: of an embedding, 0 for a chat model.
    """

    names: tuple[str, ...]
    description: str
    abilities: str
    context: int
    family: int = 11
    efforts: tuple[str, ...] = ()
    temperature: float | None = 0.3
    dialect: str = "mistral"
    dimensions: int = 0

    @property
    def name(self) -> str:
        return self.names[0]

    def can(self, ability: str) -> bool:
        return ability in self.abilities.split()


def _model(names: str, description: str, abilities: str, context: int, **rest: Any) -> Model:
    return Model(tuple(names.split()), description, abilities, context, **rest)


_NONE_HIGH = ("none", "high")
_SMALL = "mistral-small-2603 mistral-small-latest mistral-vibe-cli-fast magistral-small-latest"
_MEDIUM = "mistral-medium-latest mistral-medium mistral-medium-2604 mistral-medium-3-5 mistral-medium-3.5"
_CODESTRAL = "codestral-2508 codestral-latest mistral-code-latest mistral-code-fim-latest"

MODELS = (
    _model(_SMALL, "Mistral Small 4.", _REASONING, 262_144, family=15, efforts=_NONE_HIGH),
    _model(_MEDIUM, "Mistral Medium 3.5.", _REASONING, 262_144, family=15, efforts=_NONE_HIGH, temperature=1.0),
    _model("mistral-large-2512 mistral-large-latest", "Mistral Large 3.", _SEEING, 262_144, family=13),
    _model(
        "mistral-large-4 mistral-large-4-0",
        "Mistral Large 4 (public preview).",
        _REASONING,
        1_048_576,
        family=15,
        efforts=_NONE_HIGH,
        dialect="large-4",
    ),
    _model("ministral-3b-2512 ministral-3b-latest", "Ministral 3 3B Instruct.", _SEEING, 131_072),
    _model("ministral-8b-2512 ministral-8b-latest", "Ministral 3 8B Instruct.", _SEEING, 262_144),
    _model("ministral-14b-2512 ministral-14b-latest", "Ministral 3 14B Instruct.", _SEEING, 262_144),
    _model(_CODESTRAL, "Our language model for coding.", f"{_CHAT} completion_fim", 256_000),
    _model(
        "voxtral-small-2507 voxtral-small-latest", "Audio understanding.", f"{_CHAT} audio", 32_768, temperature=0.2
    ),
    _model(
        "zai-glm-5-3 zai-glm-5 zai-glm-latest",
        "Z.ai GLM 5.3, hosted by Mistral.",
        f"{_CHAT} reasoning",
        1_048_576,
        family=15,
        efforts=("low", "high", "max"),
        temperature=None,
        dialect="glm",
    ),
    _model("mistral-embed-2312 mistral-embed", "Mistral Embed.", "", 8_192, temperature=None, dimensions=1024),
    _model("codestral-embed codestral-embed-2505", "Codestral Embed.", "", 8_192, temperature=None, dimensions=1536),
    _model("mistral-moderation-2603", "Mistral Moderation 2.", "classification moderation", 131_072, temperature=None),
)

BY_NAME: Mapping[str, Model] = {name: model for model in MODELS for name in model.names}

#: Gone from the list; asking for one of them by id says so.
RETIRED = frozenset({"devstral-2512", "devstral-medium-latest", "mistral-medium-2508", "magistral-medium-2509"})


def card(name: str, created: int) -> dict[str, Any]:
    """A row of GET /v1/models. Every name has its own: `name` is the canonical id, `aliases` are the other names."""
    model = BY_NAME[name]
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "mistralai",
        "capabilities": {ability: model.can(ability) for ability in _ABILITIES},
        "name": model.name,
        "description": model.description,
        "max_context_length": model.context,
        "aliases": [other for other in model.names if other != name],
        "deprecation": None,
        "deprecation_replacement_model": None,
        "default_model_temperature": model.temperature,
        "type": "base",
    }


def cards(created: int) -> dict[str, Any]:
    return {"object": "list", "data": [card(name, created) for name in BY_NAME]}
