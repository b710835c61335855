// Errors: the class, the code and the names that OpenAI's have.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import { ask, connect, HELLO, MODEL, PARALLEL, refusal, says } from "../setup.mjs";

// fault, class, fields
const FAULTS = [
  ["status=401", OpenAI.InternalServerError, { code: "upstream_auth_failed" }],
  ["code=1500", OpenAI.NotFoundError, { code: "model_not_found", param: "model" }],
  ["code=1910", OpenAI.PermissionDeniedError, { code: "model_not_available" }],
  ["code=1920", OpenAI.BadRequestError, { code: "content_filter" }],
  ["status=422+loc=body.temperature", OpenAI.BadRequestError, { param: "temperature" }],
  ["status=422+body=wrapped+loc=body.random_seed", OpenAI.BadRequestError, { param: "seed" }],
  ["status=429", OpenAI.RateLimitError, { code: "rate_limit_exceeded" }],
  ["limit=0", OpenAI.RateLimitError, { code: "insufficient_quota" }],
  ["code=3505", OpenAI.RateLimitError, { code: "rate_limit_exceeded" }],
  ["status=500", OpenAI.InternalServerError, {}],
  ["status=503", OpenAI.InternalServerError, { status: 503 }],
  ["status=502+body=html", OpenAI.InternalServerError, {}],
  ["status=504+body=empty", OpenAI.InternalServerError, {}],
  ["cut_headers", OpenAI.InternalServerError, { code: "upstream_error" }],
  ["html", OpenAI.InternalServerError, { code: "upstream_error" }],
  ["redirect", OpenAI.InternalServerError, { code: "upstream_error" }],
  ["stall", OpenAI.InternalServerError, { code: "upstream_timeout" }],
];

// param, body
const BAD = [
  ["messages", { messages: [] }],
  ["messages", { messages: "hi" }],
  ["messages[0].role", { messages: [{ role: "wizard", content: "x" }] }],
  ["messages[0].content[0].type", { messages: [{ role: "user", content: [{ type: "hologram" }] }] }],
  ["max_tokens", { max_tokens: "10" }],
  ["temperature", { temperature: 3 }],
  ["stream", { stream: "yes" }],
  ["n", { n: 0 }],
  ["logit_bias", { logit_bias: { 1: 5 } }],
  ["audio", { audio: { voice: "x", format: "wav" } }],
  ["response_format.json_schema", { response_format: { type: "json_schema" } }],
  ["tools[0].function.name", { tools: [{ type: "function", function: { name: "no dots." } }] }],
];

describe("errors", PARALLEL, () => {
  test("a wrong key", async () => {
    const asked = connect({ apiKey: "sk-wrong" }).chat.completions.create({ model: MODEL, messages: HELLO });
    const error = await refusal(asked, OpenAI.AuthenticationError, { status: 401, code: "invalid_api_key" });
    assert.ok(error.requestID);
    assert.ok(!String(error).includes("sk-wrong"));
  });

  for (const [fault, kind, fields] of FAULTS)
    test(`${fault} is ${kind.name}`, async () => {
      const error = await refusal(ask({ model: `${MODEL}+${fault}` }), kind, fields);
      assert.ok(error.requestID);
      assert.ok(error.error.message);
      assert.ok(error.type);
    });

  test("an unknown model", async () => {
    const fields = { code: "model_not_found", param: "model" };
    await refusal(ask({ model: "no-such-model" }), OpenAI.NotFoundError, fields);
  });

  test("an endpoint that nobody serves", async () => {
    await refusal(connect().images.generate({ model: MODEL, prompt: "a cat" }), OpenAI.NotFoundError);
  });

  test("too long for the model", async () => {
    const asked = ask({ model: "voxtral-small-latest", messages: says("word ".repeat(40_000)) });
    await refusal(asked, OpenAI.BadRequestError, { code: "context_length_exceeded", param: "messages" });
  });

  for (const [param, body] of BAD)
    test(`bad input names its field: ${JSON.stringify(body)}`, async () => {
      const error = await refusal(ask(body), OpenAI.BadRequestError, { param, type: "invalid_request_error" });
      assert.ok(error.requestID);
    });
});
