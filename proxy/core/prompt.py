"""How large a prompt is, found without a tokenizer: about so many tokens, and no more than so many.

An estimate takes four bytes for a token, two of what is not ASCII, and one digit. The bound takes one byte, whatever it
is: a tokenizer that knows every byte, as Mistral's do, makes at most one token of each, and rare text comes near to
that. What is not text counts by the piece. Nothing is decoded, whatever its size; a request is gone through once.

Sources: mistral-common's documentation, "Images" and "Audio"; Voxtral, arXiv:2507.13264; recorded usage of the API.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from proxy.core import json
from proxy.core.json import Json

BYTES_A_TOKEN: Final = 4
"""Of ordinary text."""

_DIGITS: Final = b"0123456789"
"""Mistral's tokenizers make a token of each."""

_ASCII: Final = bytes(range(128))

MARKS: Final = 4
"""Tokens around each message, part, call and tool, and around them all."""

MOST_MARKS: Final = 64
"""The same, at most. It covers what translation adds to a message: a missing result, a heading, another id."""

MOST_ADDED: Final = 512
"""What the provider adds to a prompt as a whole: settings of the model, the text of `safe_prompt` (192 bytes)."""

IMAGE: Final = 1_406
"""Tokens of 1024 × 1024 pixels: one for 28 × 28 of them, and one at the end of each row (mistral-common, ImageConfig of
Mistral Small 3.1: patches of 14, merged by 2)."""

MOST_IMAGE: Final = 4_160
"""The most that a published configuration makes of an image, which is shrunk to fit: 1024 × 1024 pixels in patches of
16 and the ends of rows, as Pixtral; Mistral Small 3.1, up to 1540 × 1540, makes 3,080 of one."""

MOST_IMAGE_ELSEWHERE: Final = 48_169
"""The same at OpenAI: 2,833 for an image and 5,667 for each of at most 8 tiles of it, as gpt-4o-mini, which makes the
most of one (OpenAI, "Images and vision", calculating costs)."""

TOKENS_PER_2_SECONDS: Final = 25
"""Of sound (Voxtral: 12.5 tokens a second). Shorter sound is filled up to 30 seconds: 14 of them had 375 tokens."""

LEAST_SECONDS: Final = 30

SOUND_A_SECOND: Final = 6_400
"""Characters of base64 for a second of sound of 38 kbit/s, which is speech in a common format."""

DOCUMENT: Final = 4_000
"""Tokens of a document that is named by its address: a few pages."""

DOCUMENT_BYTES: Final = 32
"""Characters of base64 for one token of a document: most of a PDF is no text."""

UNKNOWN_CONTEXT: Final = 1 << 20
"""Tokens that a model takes of which we do not know it: as many as the largest of those we do."""

_SPACED: Final = 2
"""JSON that is written anew may have a space after each comma and colon."""

_REWRITTEN: Final = 4
"""Arguments of a call are JSON in a string. Read and written again, `1e15,` becomes `1000000000000000.0, `."""

_NO_PROMPT: Final = frozenset(
    (
        *(
            "model",
            "messages",
            "input",
            "temperature",
            "top_p",
            "n",
            "max_tokens",
            "max_completion_tokens",
            "stop",
            "seed",
        ),
        *("random_seed", "presence_penalty", "frequency_penalty", "stream", "stream_options", "tool_choice", "user"),
        *("parallel_tool_calls", "reasoning_effort", "logprobs", "top_logprobs", "metadata", "service_tier", "top_k"),
        *("logit_bias", "safety_identifier", "store", "prompt_cache_key", "verbosity", "modalities", "encoding_format"),
        *("dimensions", "output_dimension", "output_dtype", "safe_prompt", "min_tokens", "repetition_penalty"),
    )
)
"""Members of a request that are no part of the prompt, or are measured by themselves. All others count as the JSON that
they are: tools, formats and predictions, and what a provider knows and we do not."""

_TEXT_PARTS: Final = frozenset(("thinking", "refusal", "reference"))
"""Parts that say in their JSON all that they say."""


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """`tokens` is the estimate, `most` the bound: the provider counts no more, or refuses. The same for the seconds of
    sound in it."""

    tokens: int
    most: int
    seconds: int = 0
    most_seconds: int = 0


def measure(body: Json, context: int | None, most_image: int = MOST_IMAGE) -> Prompt:
    """The prompt of a chat or embeddings request, as its client has sent it: of any shape that JSON has. `context` is
    the model's, in tokens: a longer prompt is refused, as is each longer text of several to embed. So is `most_image`,
    the most tokens that it makes of an image."""
    rest, texts = _Rest(), []
    messages = body.get("messages")
    if type(messages) is list:
        rest.pieces = len(messages)
        for message in messages:
            content = message.get("content") if type(message) is dict else None
            if type(content) is str and len(message) == 2:  # the other member is the role
                texts.append(content)
            else:
                rest.message(message)
        rest.text("".join(texts))
    if not _NO_PROMPT.issuperset(body):
        for name, definition in body.items():
            if name not in _NO_PROMPT and definition is not None:
                rest.definition(definition)
    if "input" in body:
        rest.texts(body["input"])
    return rest.prompt(context, most_image)


def _quarters(text: bytes) -> int:
    """Quarters of a token that a text is taken for."""
    size = len(text)
    quarters = size + (BYTES_A_TOKEN - 1) * (size - len(text.translate(None, _DIGITS)))
    return quarters if text.isascii() else quarters + len(text.translate(None, _ASCII))


def text_tokens(text: bytes) -> int:
    """What a text is taken for."""
    return -(-_quarters(text) // BYTES_A_TOKEN)


class _Rest(msgspec.Struct):
    """All of it, added up. `size` is bytes of text, `quarters` of a token what they are taken for, `most` the tokens
    beyond `size` that they may be."""

    size: int = 0
    quarters: int = 0
    most: int = 0
    pieces: int = 0
    embedded: int = 0
    images: int = 0
    documents: int = 0
    document_size: int = 0
    sounds: int = 0
    sound_size: int = 0

    def prompt(self, context: int | None, most_image: int) -> Prompt:
        tokens = -(-self.quarters // BYTES_A_TOKEN) + MARKS * (self.pieces + 1) + IMAGE * self.images
        most = self.size + self.most + MOST_MARKS * self.pieces + MOST_ADDED + most_image * self.images
        if self.sounds or self.documents:
            return self._with_media(tokens, context)
        if context is not None:
            most = min(most, context * max(1, self.embedded))
        return Prompt(min(tokens, most), most)

    def _with_media(self, tokens: int, context: int | None) -> Prompt:
        """How much a file says cannot be told from its size: nothing but the context bounds it."""
        most = context or UNKNOWN_CONTEXT
        tokens += DOCUMENT * self.documents + self.document_size // DOCUMENT_BYTES
        most_seconds = 2 * most // TOKENS_PER_2_SECONDS + 1 if self.sounds else 0
        seconds = min(LEAST_SECONDS * self.sounds + self.sound_size // SOUND_A_SECOND, most_seconds)
        return Prompt(min(tokens + seconds * TOKENS_PER_2_SECONDS // 2, most), most, seconds, most_seconds)

    def text(self, text: str) -> None:
        self.utf8(text.encode())

    def utf8(self, text: bytes) -> None:
        self.size += len(text)
        self.quarters += _quarters(text)

    def structure(self, value: Any, times: int = 1) -> None:
        """JSON of which the provider makes at most so many `times` its size."""
        text = json.encode(value)
        self.utf8(text)
        self.most += len(text) * (times - 1)

    def message(self, message: Any) -> None:
        if type(message) is not dict:
            return
        for name, value in message.items():
            if name == "content" and type(value) is list:
                self.pieces += len(value)
                for part in value:
                    self.part(part)
            elif name in ("tool_calls", "function_call"):
                self.pieces += len(value) if type(value) is list else 1
                self.structure(value, _REWRITTEN)
            elif type(value) is str and name != "role":
                self.text(value)
            elif value is not None and name != "role":
                self.structure(value)

    def part(self, part: Any) -> None:
        kind = part.get("type") if type(part) is dict else None
        if kind == "text" and type(part.get("text")) is str:
            self.text(part["text"])
        elif kind == "image_url":
            self.images += 1
        elif kind == "input_audio":
            self.sounds += 1
            self.sound_size += _data_size(part.get("input_audio"), "data")
        elif kind == "document_url":
            self.documents += 1
            self.document_size += _data_size(part.get("document_url"))
        elif kind == "file":
            self.documents += 1
            self.document_size += _data_size(part.get("file"), "file_data")
        else:
            self.structure(part)
            # A video, or whatever else there may be, at an address.
            self.documents += type(kind) is str and kind not in _TEXT_PARTS and kind != "text"

    def definition(self, value: Any) -> None:
        self.pieces += len(value) if type(value) is list else 1
        self.structure(value, _SPACED)

    def texts(self, value: Any) -> None:
        texts = value if type(value) is list else [value]
        self.embedded += len(texts)
        self.pieces += len(texts)
        for text in texts:
            if type(text) is str:
                self.text(text)
            elif type(text) is list:  # of tokens
                self.quarters += BYTES_A_TOKEN * len(text)
                self.most += len(text)


def _data_size(source: Any, key: str | None = None) -> int:
    """Characters of a file that comes with the request; 0 for one that is elsewhere."""
    data = source.get(key) if key and type(source) is dict else source
    return len(data) if type(data) is str and not data.startswith(("http:", "https:")) else 0
