// The client leaves: its error, and the end of the upstream call. The faults are shorter than the proxy's own timeouts,
// which would end the call too, and a call that nobody ends is "complete" in time.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import { arrived, client, connect, left, MODEL, PARALLEL, refusal, says, unique } from "../setup.mjs";

const ENDLESS = `${MODEL}+events=500+delay=0.02`;

const ask = (mark, model, stream, signal) =>
  client.chat.completions.create({ model, messages: says(mark), stream }, { signal });

describe("leaving", PARALLEL, () => {
  test("a timeout", async () => {
    const mark = unique("timeout");
    const body = { model: `${MODEL}+latency=1.5`, messages: says(mark) };
    await refusal(connect({ timeout: 200 }).chat.completions.create(body), OpenAI.APIConnectionTimeoutError);
    await left(mark);
  });

  for (const [fault, stream] of [["latency=1.5", false], ["latency=1.5", true], ["first_event=1.5", true]])
    test(`an abort before the first byte, ${fault}, ${stream ? "streamed" : "whole"}`, async () => {
      const mark = unique("abort");
      const controller = new AbortController();
      const asked = ask(mark, `${MODEL}+${fault}`, stream, controller.signal);
      const refused = refusal(asked, OpenAI.APIUserAbortError);
      await arrived(mark);
      controller.abort();
      await refused;
      await left(mark);
    });

  test("an abort amid a stream", async () => {
    const mark = unique("amid");
    const controller = new AbortController();
    const chunks = [];
    for await (const chunk of await ask(mark, ENDLESS, true, controller.signal)) {
      chunks.push(chunk);
      if (chunks.length === 3) controller.abort();
    }
    assert.ok(chunks.length >= 3 && chunks.length < 500);
    await left(mark);
  });

  test("a break out of the loop", async () => {
    const mark = unique("break");
    for await (const chunk of await ask(mark, ENDLESS, true)) if (chunk.choices[0].delta.content) break;
    await left(mark);
  });

  test("stream().abort()", async () => {
    const mark = unique("stream-abort");
    const stream = client.chat.completions.stream({ model: ENDLESS, messages: says(mark) });
    stream.once("content", () => stream.abort());
    await refusal(stream.finalChatCompletion(), OpenAI.APIUserAbortError);
    await left(mark);
  });

  test("a readable stream that is cancelled", async () => {
    const mark = unique("cancel");
    const stream = client.chat.completions.stream({ model: ENDLESS, messages: says(mark) });
    const reader = stream.toReadableStream().getReader();
    assert.equal((await reader.read()).done, false);
    await reader.cancel();
    await left(mark);
  });
});
