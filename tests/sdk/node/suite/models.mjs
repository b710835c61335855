// The list of models, and what a team sees of it.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import { client, HELLO, MODEL, narrow, PARALLEL, refusal } from "../setup.mjs";

const idsOf = async (asking) => (await Array.fromAsync(asking.models.list())).map((model) => model.id);

describe("models", PARALLEL, () => {
  test("models are listed", async () => {
    const ids = await idsOf(client);
    for (const id of [MODEL, "mistral-embed", "house-model"]) assert.ok(ids.includes(id), id);
  });

  for (const id of [MODEL, "gpt-4o"])
    test(`${id} is found by its name`, async () => {
      const model = await client.models.retrieve(id);
      assert.deepEqual([model.id, model.object], [id, "model"]);
    });

  test("an unknown model is not found", async () => {
    await refusal(client.models.retrieve("no-such-model"), OpenAI.NotFoundError);
  });

  test("a team sees what it may use", async () => {
    const ids = await idsOf(narrow);
    assert.ok(ids.includes("mistral-embed"));
    assert.ok(ids.every((id) => id === "mistral-embed" || id.startsWith("codestral-")), String(ids));
  });

  test("a team is refused what it may not use", async () => {
    const asked = narrow.chat.completions.create({ model: "house-model", messages: HELLO });
    await refusal(asked, OpenAI.PermissionDeniedError, { code: "model_not_allowed", param: "model" });
    await refusal(narrow.models.retrieve(MODEL), OpenAI.PermissionDeniedError);
  });
});
