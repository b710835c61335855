// Structured output: what parse() and stream() make of schemas written in zod.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { LengthFinishReasonError } from "openai/error";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ask, client, HELLO, MODEL, PARALLEL, refusal } from "../setup.mjs";

const Person = z.object({
  name: z.string(),
  age: z.number().int(),
  mood: z.enum(["calm", "busy"]),
  friends: z.array(z.string()),
  address: z.object({ city: z.string().nullable() }),
});
const body = { model: MODEL, messages: HELLO, response_format: zodResponseFormat(Person, "person") };
const remember = zodFunction({ name: "remember", parameters: Person });

describe("structured", PARALLEL, () => {
  test("parse() gives what the schema says", async () => {
    const { message } = (await client.chat.completions.parse(body)).choices[0];
    assert.deepEqual(Person.parse(message.parsed), message.parsed);
    assert.deepEqual(JSON.parse(message.content), message.parsed);
  });

  test("a stream is parsed as it comes", async () => {
    const stream = client.chat.completions.stream(body);
    const snapshots = [];
    stream.on("content.delta", ({ parsed }) => snapshots.push(parsed));
    const { message } = (await stream.finalChatCompletion()).choices[0];
    assert.deepEqual(Person.parse(message.parsed), message.parsed);
    assert.deepEqual(snapshots.at(-1), message.parsed);
  });

  test("arguments of a tool are parsed", async () => {
    const answer = await client.chat.completions.parse({ model: MODEL, messages: HELLO, tools: [remember] });
    const [call] = answer.choices[0].message.tool_calls;
    assert.deepEqual(Person.parse(call.function.parsed_arguments), call.function.parsed_arguments);
  });

  test("a parsed message can be sent back as it is", async () => {
    const tools = [remember];
    const { message } = (await client.chat.completions.parse({ model: MODEL, messages: HELLO, tools })).choices[0];
    const [{ id }] = message.tool_calls;
    const messages = [...HELLO, message, { role: "tool", tool_call_id: id, content: "remembered" }];
    assert.match((await ask({ messages, tools })).choices[0].message.content, /remembered/);
  });

  test("plain JSON mode", async () => {
    const answer = await ask({ response_format: { type: "json_object" } });
    assert.equal(typeof JSON.parse(answer.choices[0].message.content), "object");
  });

  for (const finish of ["model_length", "length"])
    test(`an answer that is too long says so, ${finish}`, async () => {
      const model = `${MODEL}+finish=${finish}`;
      await refusal(client.chat.completions.parse({ ...body, model }), LengthFinishReasonError);
      const stream = client.chat.completions.stream({ ...body, model });
      await refusal(stream.finalChatCompletion(), LengthFinishReasonError);
    });
});
