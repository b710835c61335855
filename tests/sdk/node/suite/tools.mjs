// Tools: over several turns, in streams, run by the SDK itself, and the functions they have replaced.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { zodFunction } from "openai/helpers/zod";
import { z } from "zod";
import { ask, callsWith, chunksOf, client, HELLO, MODEL, PARALLEL, says, TIME, unique, WEATHER } from "../setup.mjs";

const tools = [WEATHER, TIME];
const { strict, ...FUNCTION } = WEATHER.function;
const namesOf = (calls) => calls?.map((call) => call.function.name);
const idsOf = (body) => body.messages.flatMap((message) => (message.tool_calls ?? []).map((call) => call.id));

/** Tools that the SDK can run; `ran` collects what they were given. */
function runnable(ran) {
  const parameters = z.object({ city: z.string(), unit: z.enum(["celsius", "fahrenheit"]) });
  const remember = (name) => (given) => (ran.push([name, given]), `result of ${name}`);
  return [
    zodFunction({ name: "get_weather", parameters, function: remember("get_weather") }),
    zodFunction({ name: "get_time", parameters: z.object({}), function: remember("get_time") }),
  ];
}

function assertRan(ran, content) {
  assert.deepEqual(ran.map(([name]) => name), ["get_weather", "get_time"]);
  assert.deepEqual(Object.keys(ran[0][1]).sort(), ["city", "unit"]);
  assert.match(content, /result of get_weather.*result of get_time/);
}

describe("tools", PARALLEL, () => {
  test("ids are stable over several turns", async () => {
    const mark = unique("turns");
    const messages = says(`Use both tools for all of Paris, ${mark}.`);
    const first = (await ask({ messages, tools })).choices[0];
    assert.equal(first.finish_reason, "tool_calls");
    assert.deepEqual(namesOf(first.message.tool_calls), ["get_weather", "get_time"]);
    assert.equal(first.message.content, null);
    messages.push(first.message);
    for (const { id } of first.message.tool_calls)
      messages.push({ role: "tool", tool_call_id: id, content: `result of ${id}` });
    const second = (await ask({ messages, tools })).choices[0];
    for (const { id } of first.message.tool_calls) assert.ok(second.message.content.includes(`result of ${id}`));
    messages.push(second.message, { role: "user", content: "Use it again" });
    const third = (await ask({ messages, tools: [WEATHER], tool_choice: "required" })).choices[0];
    assert.deepEqual(namesOf(third.message.tool_calls), ["get_weather"]);
    const [, two, three] = (await callsWith(mark)).map((call) => idsOf(call.body));
    assert.equal(two.length, 2);
    assert.deepEqual(three.slice(0, 2), two);
  });

  for (const model of ["ministral-8b-latest", MODEL, "mistral-large-latest"])
    test(`ids of another provider are made to fit ${model}`, async () => {
      const id = "call_abcDEF1234567890abcdefgh";
      const call = { id, type: "function", function: { name: "get_time", arguments: "" } };
      const messages = [
        ...says("What time is it?"),
        { role: "assistant", tool_calls: [call] },
        { role: "tool", tool_call_id: id, content: "noon" },
        { role: "user", content: "Thanks" },
      ];
      assert.equal((await ask({ model, messages })).choices[0].finish_reason, "stop");
    });

  for (const model of [MODEL, `${MODEL}+bare_tools`, `${MODEL}+object_args`, "zai-glm-5-3"]) {
    const body = { model, messages: says("Use both"), tools };

    test(`stream() puts together the tools of ${model}`, async () => {
      const [choice] = (await client.chat.completions.stream(body).finalChatCompletion()).choices;
      assert.equal(choice.finish_reason, "tool_calls");
      assert.deepEqual(namesOf(choice.message.tool_calls), ["get_weather", "get_time"]);
      const [weather] = choice.message.tool_calls;
      assert.equal(weather.type, "function");
      assert.deepEqual(Object.keys(JSON.parse(weather.function.arguments)).sort(), ["city", "unit"]);
    });

    for (const [content, expected] of [["Use it", ["get_weather"]], ["Use both", ["get_weather", "get_time"]]])
      test(`stream() says when each tool of ${model} is complete: ${content}`, async () => {
        const done = [];
        const stream = client.chat.completions.stream({ ...body, messages: says(content) });
        stream.on("tool_calls.function.arguments.done", ({ name }) => done.push(name));
        await stream.done();
        assert.deepEqual(done, expected);
      });

    test(`tools in the raw chunks of ${model}`, async () => {
      const found = [];
      for (const chunk of await chunksOf(body))
        for (const { index, id, type, function: part } of chunk.choices[0].delta.tool_calls ?? []) {
          found[index] ??= { id, type, name: part.name, text: "" };
          found[index].text += part.arguments ?? "";
        }
      assert.deepEqual(found.map((call) => call.name), ["get_weather", "get_time"]);
      assert.equal(new Set(found.map((call) => call.id)).size, 2);
      for (const call of found) assert.ok(call.id && call.type === "function" && JSON.parse(call.text));
    });

    test(`tools in a whole answer of ${model}`, async () => {
      const calls = (await ask(body)).choices[0].message.tool_calls;
      assert.deepEqual(namesOf(calls), ["get_weather", "get_time"]);
      assert.ok(calls.every((call) => call.type === "function" && JSON.parse(call.function.arguments)));
    });
  }

  for (const streamed of [false, true])
    test(`runTools() ${streamed ? "over streams" : "over whole answers"}`, async () => {
      const ran = [];
      const messages = says("Use both tools");
      const body = { model: MODEL, messages, tools: runnable(ran), stream: streamed };
      const running = client.chat.completions.runTools(body);
      assertRan(ran, await running.finalContent());
      const roles = running.messages.map((message) => message.role);
      assert.deepEqual(roles, ["user", "assistant", "tool", "tool", "assistant"]);
      assert.equal(running.allChatCompletions().length, 2);
    });

  test("a choice among allowed tools", async () => {
    const allowed_tools = { mode: "required", tools: [{ type: "function", function: { name: "get_time" } }] };
    const answer = await ask({ tools, tool_choice: { type: "allowed_tools", allowed_tools } });
    assert.deepEqual(namesOf(answer.choices[0].message.tool_calls), ["get_time"]);
  });

  test("one function by its name", async () => {
    const answer = await ask({ tools, tool_choice: TIME });
    assert.deepEqual(namesOf(answer.choices[0].message.tool_calls), ["get_time"]);
  });

  test("the older functions", async () => {
    const messages = says("The weather?");
    const functions = [FUNCTION];
    const [choice] = (await ask({ messages, functions, function_call: { name: "get_weather" } })).choices;
    assert.equal(choice.finish_reason, "function_call");
    assert.equal(choice.message.function_call.name, "get_weather");
    messages.push(choice.message, { role: "function", name: "get_weather", content: "sun" });
    assert.match((await ask({ messages, functions })).choices[0].message.content, /sun/);
  });

  test("the older functions in a stream", async () => {
    const body = { messages: HELLO, functions: [FUNCTION] };
    const stream = client.chat.completions.stream({ model: MODEL, ...body });
    const [choice] = (await stream.finalChatCompletion()).choices;
    assert.equal(choice.finish_reason, "function_call");
    const parts = (await chunksOf(body)).map((chunk) => chunk.choices[0].delta.function_call ?? {});
    assert.equal(parts.map((part) => part.name ?? "").join(""), "get_weather");
    const text = parts.map((part) => part.arguments ?? "").join("");
    assert.equal(text, choice.message.function_call.arguments);
    assert.deepEqual(Object.keys(JSON.parse(text)).sort(), ["city", "unit"]);
  });
});
