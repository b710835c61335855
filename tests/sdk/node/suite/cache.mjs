// A hit is the miss once more: the simulator gives no two answers the same id, so equal objects are one answer.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ask, callsWith, chunksOf, client, MODEL, PARALLEL, says, unique, WEATHER } from "../setup.mjs";

const fixed = (mark, options = {}) => ({ messages: says(mark), temperature: 0, ...options });
const schema = { type: "object", properties: { name: { type: "string" } }, required: ["name"], additionalProperties: false };
const SCHEMA = { type: "json_schema", json_schema: { name: "person", schema, strict: true } };

const CASES = {
  chat: (mark) => ask(fixed(mark)),
  tools: (mark) => ask(fixed(mark, { tools: [WEATHER], tool_choice: "required" })),
  "structured output": (mark) => ask(fixed(mark, { response_format: SCHEMA })),
  stream: (mark) => chunksOf(fixed(mark)),
  "stream with usage": (mark) => chunksOf(fixed(mark, { stream_options: { include_usage: true } })),
  "stream of tools": (mark) => chunksOf(fixed(mark, { tools: [WEATHER], tool_choice: "required" })),
  embeddings: (mark) => client.embeddings.create({ model: "mistral-embed", input: [mark, "another"] }),
};

const plain = (answer) => JSON.parse(JSON.stringify(answer)); // without _request_id, which each has for itself

describe("cache", PARALLEL, () => {
  for (const [name, asked] of Object.entries(CASES))
    test(`a hit is the miss once more: ${name}`, async () => {
      const mark = unique("cached");
      const first = plain(await asked(mark));
      assert.deepEqual(plain(await asked(mark)), first);
      assert.deepEqual(plain(await asked(mark)), first);
      assert.equal((await callsWith(mark)).length, 1);
    });

  test("it says so in its headers", async () => {
    const mark = unique("cached");
    const create = () => client.chat.completions.create({ model: MODEL, ...fixed(mark) }).withResponse();
    const [first, second] = [await create(), await create()];
    assert.equal(first.response.headers.get("x-proxy-cache"), "miss");
    assert.equal(second.response.headers.get("x-proxy-cache"), "hit");
    assert.notEqual(first.request_id, second.request_id);
  });
});
