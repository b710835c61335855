// What the tests share: clients of the proxy that runs at BASE_URL, and a look at what the simulated Mistral has seen.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import OpenAI from "openai";

const { BASE_URL, API_KEY, OTHER_KEY, SIMULATOR } = process.env;
const PATIENCE = 20_000; // ms until a condition that is met in milliseconds counts as never met

export const MODEL = "mistral-small-latest";
export const PARALLEL = { concurrency: 8 };

export const connect = (options = {}) =>
  new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0, timeout: 20_000, ...options });
export const client = connect();
export const narrow = connect({ apiKey: OTHER_KEY });

export const says = (content) => [{ role: "user", content }];
export const HELLO = says("Hello there, how are you today?");

export const TIME = { type: "function", function: { name: "get_time" } };
export const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather at a place.",
    parameters: {
      type: "object",
      properties: { city: { type: "string" }, unit: { enum: ["celsius", "fahrenheit"] } },
      required: ["city", "unit"],
      additionalProperties: false,
    },
    strict: true,
  },
};

/** A chat completion; `options` are those of the body. */
export const ask = (options = {}) => client.chat.completions.create({ model: MODEL, messages: HELLO, ...options });

/** All chunks of a streamed chat completion. */
export const chunksOf = async (options = {}) => Array.fromAsync(await ask({ stream: true, ...options }));

export const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

/** The error with which `promise` is rejected, which must be of this very class and have these fields. */
export async function refusal(promise, kind, fields = {}) {
  const error = await promise.then(() => assert.fail(`expected ${kind.name}, got an answer`), (caught) => caught);
  assert.equal(error.constructor.name, kind.name, error.stack);
  for (const [name, value] of Object.entries(fields)) assert.equal(error[name], value, `${name} of ${error}`);
  return error;
}

/** A text that no other call has, not even in another run against the same simulator. */
export const unique = (name) => `${name}-${randomUUID()}`;

/** The calls at the simulator whose body has this text. */
export async function callsWith(mark) {
  const calls = await (await fetch(`${SIMULATOR}/_sim/calls`)).json();
  return calls.filter((call) => JSON.stringify(call.body)?.includes(mark));
}

/** The first call with this text that `holds`; waits for it. */
export async function callWhere(mark, holds) {
  for (const end = Date.now() + PATIENCE; Date.now() < end; await pause(20)) {
    const found = (await callsWith(mark)).find(holds);
    if (found) return found;
  }
  return assert.fail(`no such call within ${PATIENCE} ms: ${mark} ${holds}`);
}

export const arrived = (mark) => callWhere(mark, () => true);
export const left = (mark) => callWhere(mark, (call) => call.ended === "client_gone");
