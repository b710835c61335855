// Answers that come whole.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import { ask, callsWith, client, HELLO, MODEL, PARALLEL, refusal, says, unique } from "../setup.mjs";

describe("chat", PARALLEL, () => {
  test("an answer has all that OpenAI's has", async () => {
    const answer = await ask();
    const [choice, ...others] = answer.choices;
    assert.deepEqual(others, []);
    assert.equal(choice.message.role, "assistant");
    assert.match(choice.message.content, /Hello there/);
    assert.equal(choice.message.refusal, null);
    assert.equal(choice.message.tool_calls ?? null, null);
    assert.equal(choice.finish_reason, "stop");
    assert.equal(choice.logprobs, null);
    assert.equal(answer.object, "chat.completion");
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
    assert.ok(total_tokens > 0);
    assert.equal(total_tokens, prompt_tokens + completion_tokens);
  });

  test("every answer names its request", async () => {
    const { data, response, request_id } = await ask().withResponse();
    assert.ok(request_id);
    assert.equal(response.headers.get("x-request-id"), request_id);
    assert.equal(data._request_id, request_id);
  });

  test("a request id of the client is kept", async () => {
    const headers = { "x-request-id": "req-of-the-client-1" };
    const answer = await client.chat.completions.create({ model: MODEL, messages: HELLO }, { headers });
    assert.equal(answer._request_id, "req-of-the-client-1");
  });

  test("an OpenAI model name is served by its alias", async () => {
    const { data, response } = await ask({ model: "gpt-4o" }).withResponse();
    assert.equal(response.headers.get("x-proxy-upstream"), "mistral/mistral-large-latest");
    assert.equal(response.headers.get("x-proxy-attempts"), "1");
    assert.equal(data.model, "mistral-large-latest");
  });

  test("an alias of the house is served too", async () => {
    const { response } = await ask({ model: "house-model" }).withResponse();
    assert.equal(response.headers.get("x-proxy-upstream"), `mistral/${MODEL}`);
  });

  test("what the provider cannot do is said in a header", async () => {
    const { response } = await ask({
      messages: [{ role: "developer", content: "Be brief." }, ...HELLO],
      seed: 7,
      user: "me",
      store: true,
      max_completion_tokens: 50,
      temperature: 1.9,
      made_up: 1,
    }).withResponse();
    const rewrites = new Set(response.headers.get("x-proxy-rewrites").split(", "));
    for (const rewrite of ["drop:user", "drop:store", "drop:made_up", "rename:seed>random_seed", "clamp:temperature"])
      assert.ok(rewrites.has(rewrite), `${rewrite} in ${[...rewrites]}`);
  });

  test("strict mode refuses instead", async () => {
    const headers = { "x-proxy-translation": "strict" };
    await refusal(
      client.chat.completions.create({ model: MODEL, messages: HELLO, verbosity: "low" }, { headers }),
      OpenAI.BadRequestError,
      { code: "unsupported_parameter", param: "verbosity" },
    );
  });

  test("nothing of the client but the body goes upstream", async () => {
    const mark = unique("headers");
    const headers = { "x-mine": "1", cookie: "a=b" };
    await client.chat.completions.create({ model: MODEL, messages: says(mark) }, { headers });
    const [call] = await callsWith(mark);
    const names = call.headers.map(([name]) => name).sort();
    const ours = ["accept", "accept-encoding", "authorization", "content-length", "content-type", "host"];
    ours.push("traceparent", "user-agent");
    assert.deepEqual(names, ours);
    assert.ok(!JSON.stringify(call).includes(client.apiKey));
  });

  test("several choices", async () => {
    const answer = await ask({ n: 3 });
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  });

  test("an answer that max_tokens cuts", async () => {
    const answer = await ask({ max_tokens: 2 });
    assert.equal(answer.choices[0].finish_reason, "length");
  });

  for (const reasoning_effort of ["minimal", "high"])
    test(`a model that thinks, effort ${reasoning_effort}`, async () => {
      const { message } = (await ask({ reasoning_effort })).choices[0];
      assert.match(message.content, /Hello there/);
      assert.equal(typeof message.reasoning_content, "string");
      assert.ok(message.reasoning_content);
    });

  test("parts of every kind", async () => {
    const pixel = `data:image/png;base64,${Buffer.from("not really a picture").toString("base64")}`;
    const content = [
      { type: "text", text: "What is this?" },
      { type: "image_url", image_url: { url: pixel, detail: "low" } },
      { type: "file", file: { file_data: "data:application/pdf;base64,AAAA", filename: "a.pdf" } },
    ];
    const answer = await ask({ messages: [{ role: "user", name: "anna", content }] });
    assert.match(answer.choices[0].message.content, /What is this\?/);
  });

  test("audio in", async () => {
    const content = [{ type: "input_audio", input_audio: { data: "UklGRg==", format: "wav" } }];
    const answer = await ask({ model: "voxtral-small-latest", messages: [{ role: "user", content }] });
    assert.equal(answer.choices[0].finish_reason, "stop");
  });

  test("many at once", async () => {
    const texts = Array.from({ length: 50 }, (_, i) => `number ${i}.`);
    const answers = await Promise.all(texts.map((text) => ask({ messages: says(text) })));
    for (const [i, answer] of answers.entries()) assert.ok(answer.choices[0].message.content.includes(texts[i]));
  });
});
