// Embeddings, which this SDK asks for in base64 and decodes by itself.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import { client, PARALLEL, refusal } from "../setup.mjs";

const embed = (input, options = {}) => client.embeddings.create({ model: "mistral-embed", input, ...options });

function assertClose(found, expected) {
  assert.equal(found.length, expected.length);
  const far = expected.findIndex((value, i) => !(Math.abs(found[i] - value) < 1e-6));
  assert.equal(far, -1, `at ${far}: ${found[far]} is not ${expected[far]}`);
}

describe("embeddings", PARALLEL, () => {
  test("the default, base64 and floats are the same numbers", async () => {
    const unasked = (await embed("a text", { model: "text-embedding-3-small" })).data[0].embedding;
    const floats = (await embed("a text", { encoding_format: "float" })).data[0].embedding;
    const packed = (await embed("a text", { encoding_format: "base64" })).data[0].embedding;
    assert.equal(unasked.length, 1024);
    assert.ok(floats.some((value) => value !== 0));
    assertClose(unasked, floats);
    assert.equal(typeof packed, "string");
    const bytes = Buffer.from(packed, "base64");
    assertClose(Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i)), floats);
  });

  test("more inputs than the provider takes at once", async () => {
    const texts = Array.from({ length: 600 }, (_, i) => `text ${i}`);
    const { data: answer, response } = await embed(texts).withResponse();
    assert.equal(response.headers.get("x-proxy-attempts"), "3");
    assert.deepEqual(answer.data.map((item) => item.index), [...texts.keys()]);
    assertClose(answer.data[599].embedding, (await embed(texts[599])).data[0].embedding);
    assert.ok(answer.usage.total_tokens >= 600);
  });

  test("inputs whose tokens are too many at once are halved", async () => {
    const texts = Array.from({ length: 100 }, (_, i) => `${i} ${"word ".repeat(400)}`);
    const answer = await embed(texts);
    assert.deepEqual(answer.data.map((item) => item.index), [...texts.keys()]);
  });

  test("dimensions, where the model has them", async () => {
    const answer = await embed("a", { model: "codestral-embed", dimensions: 256 });
    assert.equal(answer.data[0].embedding.length, 256);
    const refused = { code: "unsupported_parameter", param: "dimensions" };
    await refusal(embed("a", { dimensions: 256 }), OpenAI.BadRequestError, refused);
  });

  test("arrays of tokens are refused", async () => {
    await refusal(embed([[1, 2, 3]]), OpenAI.BadRequestError, { param: "input" });
  });
});
