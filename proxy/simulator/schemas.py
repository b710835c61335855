"""What Mistral's request bodies may contain: facts, not code.

Source: Mistral's published OpenAPI description (platform-docs-public, August 2026) and, for the fields and values that
came after it, the `mistralai` 3.7 SDK. A field is here when either of the two has it. `OrNull` stands exactly where the
description allows null.
"""

from proxy.simulator.schema import Anything, Either, Flag, Items, Model, Node, Number, OneOf, OrNull, Tagged, Text, Uuid

_TEXT, _FLAG, _OBJECT, _WHOLE, _NUMBER = Text(), Flag(), Anything(), Number(whole=True), Number()
_TEXTS = Items(_TEXT)
_TEXT_OR_NULL, _TEXTS_OR_NULL, _OBJECT_OR_NULL = OrNull(_TEXT), OrNull(_TEXTS), OrNull(_OBJECT)
_COUNT = OrNull(Number(ge=0, whole=True))


def _closed(label: str, must: str, /, **fields: Node) -> Model:
    """A model that allows no other field; `must`: the names of those it cannot do without."""
    return Model(label, fields, tuple(must.split()))


def _open(label: str, /, **fields: Node) -> Model:
    return Model(label, fields, closed=False)


def _one(*values: str, label: str = "enum") -> OneOf:
    return OneOf(values, label)


# -- content

_TEXT_CHUNK = _closed("TextChunk", "text", type=_one("text"), text=_TEXT)
_REFERENCE = _closed(
    "ReferenceChunk", "reference_ids", type=_one("reference"), reference_ids=Items(Either((_WHOLE, _TEXT)))
)
_TOOL_REFERENCE = _closed(
    "ToolReferenceChunk",
    "tool title",
    type=_one("tool_reference"),
    tool=_TEXT,
    title=_TEXT,
    url=_TEXT_OR_NULL,
    favicon=_TEXT_OR_NULL,
    description=_TEXT_OR_NULL,
)
_THINKING = _closed(
    "ThinkChunk",
    "thinking",
    type=_one("thinking"),
    thinking=Items(Either((_TEXT_CHUNK, _TOOL_REFERENCE, _REFERENCE))),
    signature=_TEXT_OR_NULL,
    closed=_FLAG,
)
_IMAGE_URL = _closed("ImageURL", "url", url=_TEXT, detail=OrNull(_one("low", "auto", "high")))
_IMAGE = _closed("ImageURLChunk", "image_url", type=_one("image_url"), image_url=Either((_IMAGE_URL, _TEXT)))
_DOCUMENT = _closed(
    "DocumentURLChunk",
    "document_url",
    type=_one("document_url"),
    document_url=_TEXT,
    document_name=_TEXT_OR_NULL,
)
_FILE = _closed("FileChunk", "file_id", type=_one("file"), file_id=Uuid())
_AUDIO = _closed("AudioChunk", "input_audio", type=_one("input_audio"), input_audio=_TEXT)

_SYSTEM_CHUNKS = {"text": _TEXT_CHUNK, "thinking": _THINKING}
_CHUNKS = {
    **_SYSTEM_CHUNKS,
    **{"image_url": _IMAGE, "document_url": _DOCUMENT, "reference": _REFERENCE, "file": _FILE, "input_audio": _AUDIO},
}
_SYSTEM_CONTENT = Either((_TEXT, Items(Tagged("type", _SYSTEM_CHUNKS))))
_CONTENT = OrNull(Either((_TEXT, Items(Tagged("type", _CHUNKS)))))

# -- messages

_FUNCTION_CALL = _closed("FunctionCall", "name arguments", name=_TEXT, arguments=Either((_OBJECT, _TEXT)))
_TOOL_CALL = _closed("ToolCall", "function", id=_TEXT, type=_one("function"), function=_FUNCTION_CALL, index=_WHOLE)
_MESSAGES = {
    "system": _closed("SystemMessage", "content", role=_one("system"), content=_SYSTEM_CONTENT),
    "user": _closed("UserMessage", "content", role=_one("user"), content=_CONTENT),
    "assistant": _closed(
        "AssistantMessage",
        "",
        role=_one("assistant"),
        content=_CONTENT,
        tool_calls=OrNull(Items(_TOOL_CALL)),
        prefix=_FLAG,
    ),
    "tool": _closed(
        "ToolMessage", "content", role=_one("tool"), content=_CONTENT, tool_call_id=_TEXT_OR_NULL, name=_TEXT_OR_NULL
    ),
}

# -- tools and formats

_FUNCTION = _closed("Function", "name parameters", name=_TEXT, parameters=_OBJECT, description=_TEXT, strict=_FLAG)
_CONFIGURATION = OrNull(
    _closed(
        "ToolConfiguration",
        "",
        exclude=_TEXTS_OR_NULL,
        include=_TEXTS_OR_NULL,
        requires_confirmation=_TEXTS_OR_NULL,
    )
)
_AUTHORIZATIONS = {
    "api-key": _closed("APIKeyAuth", "value", type=_one("api-key"), value=_TEXT),
    "oauth2-token": _closed("OAuth2TokenAuth", "value", type=_one("oauth2-token"), value=_TEXT),
}


def _built_in(label: str, kind: str, must: str = "", /, **fields: Node) -> Model:
    return _closed(label, must, type=_one(kind), tool_configuration=_CONFIGURATION, **fields)


_TOOLS = {
    "function": _closed("Tool", "function", type=_one("function"), function=_FUNCTION),
    "web_search": _built_in("WebSearchTool", "web_search"),
    "web_search_premium": _built_in("WebSearchPremiumTool", "web_search_premium"),
    "code_interpreter": _built_in("CodeInterpreterTool", "code_interpreter"),
    "image_generation": _built_in("ImageGenerationTool", "image_generation"),
    "document_library": _built_in(
        "DocumentLibraryTool", "document_library", "library_ids", library_ids=Items(_TEXT, least=1)
    ),
    "connector": _built_in(
        "CustomConnector",
        "connector",
        "connector_id",
        connector_id=_TEXT,
        authorization=OrNull(Tagged("type", _AUTHORIZATIONS)),
    ),
}
_FUNCTION_NAME = _closed("FunctionName", "name", name=_TEXT)
_TOOL_CHOICE = Either(
    (
        _closed("ToolChoice", "function", type=_one("function"), function=_FUNCTION_NAME),
        _one("auto", "none", "any", "required", label="ToolChoiceEnum"),
    )
)
_JSON_SCHEMA = _closed("JsonSchema", "name schema", name=_TEXT, description=_TEXT_OR_NULL, schema=_OBJECT, strict=_FLAG)
_RESPONSE_FORMAT = _closed(
    "ResponseFormat", "", type=_one("text", "json_object", "json_schema"), json_schema=OrNull(_JSON_SCHEMA)
)

# -- guardrails, the only part that is not closed


def _moderation(label: str, categories: str) -> Node:
    thresholds = _open(f"{label}Thresholds", **dict.fromkeys(categories.split(), OrNull(_NUMBER)))
    return OrNull(
        _open(
            label,
            model_name=_TEXT,
            custom_category_thresholds=OrNull(thresholds),
            ignore_other_categories=_FLAG,
            action=_one("none", "block"),
        )
    )


_COMMON = "sexual hate_and_discrimination violence_and_threats selfharm health financial law pii"
_GUARDRAIL = _open(
    "GuardrailConfig",
    block_on_error=_FLAG,
    moderation_llm_v1=_moderation("ModerationLLMV1Config", f"{_COMMON} dangerous_and_criminal_content"),
    moderation_llm_v2=_moderation("ModerationLLMV2Config", f"{_COMMON} dangerous criminal jailbreaking"),
)

# -- requests

CHAT = _closed(
    "ChatCompletionRequest",
    "model messages",
    model=_TEXT,
    messages=Items(Tagged("role", _MESSAGES)),
    temperature=OrNull(Number(ge=0, le=1.5)),
    top_p=OrNull(Number(gt=0, le=1)),
    max_tokens=_COUNT,
    stream=_FLAG,
    stop=OrNull(Either((_TEXT, _TEXTS))),
    random_seed=_COUNT,
    metadata=_OBJECT_OR_NULL,
    response_format=_RESPONSE_FORMAT,
    tools=OrNull(Items(Tagged("type", _TOOLS))),
    tool_choice=_TOOL_CHOICE,
    presence_penalty=OrNull(Number(ge=-2, le=2)),
    frequency_penalty=OrNull(Number(ge=-2, le=2)),
    n=OrNull(Number(ge=1, whole=True)),
    prediction=_closed("Prediction", "", type=_one("content"), content=_TEXT),
    parallel_tool_calls=_FLAG,
    reasoning_effort=OrNull(_one("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    prompt_mode=OrNull(_one("reasoning")),
    guardrails=OrNull(Items(_GUARDRAIL)),
    prompt_cache_key=_TEXT_OR_NULL,
    service_tier=OrNull(_one("auto", "standard_only")),
    safe_prompt=_FLAG,
    # known to the SDK only
    min_tokens=OrNull(_WHOLE),
    repetition_penalty=OrNull(_NUMBER),
    top_k=OrNull(_WHOLE),
    logprobs=OrNull(_FLAG),
    top_logprobs=OrNull(_WHOLE),
    prompt_logprobs=OrNull(_FLAG),
    top_prompt_logprobs=OrNull(_WHOLE),
)

EMBEDDINGS = _closed(
    "EmbeddingRequest",
    "model input",
    model=_TEXT,
    input=Either((_TEXT, _TEXTS)),
    metadata=_OBJECT_OR_NULL,
    output_dimension=OrNull(Number(gt=0, whole=True)),
    output_dtype=_one("float", "int8", "uint8", "binary", "ubinary"),
    encoding_format=_one("float", "base64"),
)
