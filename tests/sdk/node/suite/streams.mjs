// Answers that come in pieces: as raw chunks and through the SDK's stream(), whole, cut up and broken.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import { ChatCompletionStream } from "openai/lib/ChatCompletionStream";
import { ask, chunksOf, client, HELLO, MODEL, PARALLEL, refusal, says, textOf } from "../setup.mjs";

const stream = (options = {}) => client.chat.completions.stream({ model: MODEL, messages: HELLO, ...options });
const whole = async (options) => (await ask(options)).choices[0].message;

const CUTS = [
  "fragment=1", "fragment=7", "coalesce", "crlf", "comments", "crlf+fragment=3", "no_done", "comments+coalesce",
];
const EVENTS = ["connect", "chunk", "content", "chatCompletion", "finalChatCompletion", "end"];
const BREAKS = {
  "cut_events=3": "upstream_error",
  "eof_events=3": "upstream_error",
  "error_events=3": "upstream_error",
  "garbage_events=3": "upstream_error",
  "stall_events=3": "upstream_timeout",
};

describe("streams", PARALLEL, () => {
  test("a stream says what the whole answer says", async () => {
    const chunks = await chunksOf();
    assert.equal(textOf(chunks), (await whole()).content);
    assert.equal(chunks[0].choices[0].delta.role, "assistant");
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
    assert.ok(chunks.every((chunk) => chunk.object === "chat.completion.chunk" && chunk.choices.length));
    assert.ok(chunks.length > 3);
  });

  test("usage comes in a chunk of its own when asked for", async () => {
    const chunks = await chunksOf({ stream_options: { include_usage: true } });
    const last = chunks.pop();
    assert.deepEqual(last.choices, []);
    assert.ok(last.usage.total_tokens > 0);
    assert.ok(chunks.every((chunk) => !chunk.usage && chunk.choices.length));
  });

  test("streamed choices interleave", async () => {
    const texts = ["", ""];
    for (const { choices } of await chunksOf({ n: 2 })) texts[choices[0].index] += choices[0].delta.content ?? "";
    assert.ok(texts.every(Boolean));
  });

  test("thinking is streamed beside the text", async () => {
    const expected = await whole({ reasoning_effort: "high" });
    const chunks = await chunksOf({ reasoning_effort: "high" });
    assert.ok(chunks.every(({ choices: [{ delta }] }) => typeof (delta.content ?? "") === "string"));
    assert.equal(textOf(chunks), expected.content);
    const thought = chunks.map(({ choices: [{ delta }] }) => delta.reasoning_content ?? "").join("");
    assert.equal(thought, expected.reasoning_content);
  });

  for (const model of [MODEL, "mistral-large-4"])
    test(`stream() with the thinking of ${model}`, async () => {
      const { content } = await stream({ model, reasoning_effort: "high" }).finalMessage();
      assert.match(content, /Hello there/);
    });

  test("stream() emits its events and ends with the completion", async () => {
    const seen = [];
    const running = stream();
    for (const event of EVENTS) running.on(event, () => seen.push(event));
    const deltas = [];
    running.on("content.delta", ({ delta }) => deltas.push(delta));
    const final = await running.finalChatCompletion();
    assert.equal(final.object, "chat.completion");
    assert.equal(final.choices[0].finish_reason, "stop");
    assert.equal(deltas.join(""), final.choices[0].message.content);
    assert.equal(await running.finalContent(), (await whole()).content);
    assert.deepEqual([...new Set(seen)], EVENTS);
  });

  test("stream() can be iterated, and counts tokens", async () => {
    const running = stream({ stream_options: { include_usage: true } });
    const chunks = await Array.fromAsync(running);
    assert.equal(textOf(chunks), await running.finalContent());
    assert.ok((await running.totalUsage()).total_tokens > 0);
  });

  test("a raw stream survives toReadableStream()", async () => {
    const raw = await ask({ stream: true });
    const again = ChatCompletionStream.fromReadableStream(raw.toReadableStream());
    assert.equal(await again.finalContent(), (await whole()).content);
  });

  test("stream() survives toReadableStream()", async () => {
    const again = ChatCompletionStream.fromReadableStream(stream().toReadableStream());
    assert.equal(await again.finalContent(), (await whole()).content);
  });

  test("both branches of tee() say the same", async () => {
    const [left, right] = (await ask({ stream: true })).tee();
    const [one, other] = await Promise.all([Array.fromAsync(left), Array.fromAsync(right)]);
    assert.ok(textOf(one));
    assert.deepEqual(one, other);
  });

  test("an assistant message to go on from", async () => {
    const messages = [...HELLO, { role: "assistant", content: "Once upon a" }];
    const { content } = await whole({ messages });
    assert.ok(content && !content.startsWith("Once upon a"));
    assert.equal(textOf(await chunksOf({ messages })), content);
  });

  for (const cut of CUTS)
    test(`cut into pieces by ${cut}, it says the same`, async () => {
      const messages = says("Grüße aus Zürich – 東京 🗼");
      const { content } = await whole({ messages });
      assert.match(content, /Zürich – 東京 🗼/);
      const model = `${MODEL}+${cut}`;
      assert.equal(textOf(await chunksOf({ model, messages })), content);
      assert.equal(await stream({ model, messages }).finalContent(), content);
    });

  for (const [fault, code] of Object.entries(BREAKS)) {
    const model = `${MODEL}+${fault}+events=20`;

    test(`broken by ${fault}, it raises and never ends as a success`, async () => {
      const seen = [];
      const read = async () => {
        for await (const chunk of await ask({ model, stream: true })) seen.push(chunk);
      };
      await refusal(read(), OpenAI.APIError, { code });
      assert.ok(seen.length >= 1 && seen.length <= 3, `${seen.length} chunks`);
      assert.ok(seen.every((chunk) => chunk.choices[0].finish_reason === null));
    });

    test(`broken by ${fault}, stream() raises too`, async () => {
      await refusal(stream({ model }).finalChatCompletion(), OpenAI.APIError, { code });
    });
  }

  test("an error before the first event is an ordinary error", async () => {
    const model = `${MODEL}+status=503`;
    await refusal(ask({ model, stream: true }), OpenAI.InternalServerError, { status: 503 });
    await refusal(stream({ model }).finalChatCompletion(), OpenAI.InternalServerError, { status: 503 });
  });
});
