// The OpenAI SDK for Node, asked for what its users ask for. BASE_URL, KEY and NODE_PATH come from run.py.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.PACKAGES}/package.json`);
const { OpenAI } = require("openai");
const client = new OpenAI({ baseURL: `${process.env.BASE_URL}/v1`, apiKey: process.env.KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "a b c" }];

const models = await client.models.list();
assert.deepEqual(models.data.map((one) => one.id), ["tiny"]);

const whole = await client.chat.completions.create({ model: "tiny", messages, max_tokens: 3 });
assert.equal(whole.choices[0].message.content, "w0 w1 w2");
assert.equal(whole.usage.completion_tokens, 3);

const { data, response } = await client.chat.completions
  .create({ model: "tiny", messages, max_tokens: 5, stream: true, stream_options: { include_usage: true } })
  .withResponse();
assert.ok(response.headers.get("x-request-id"));
let text = "";
let usage = null;
for await (const chunk of data) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text.trim(), "w0 w1 w2 w3 w4");
assert.equal(usage.completion_tokens, 5);

const helper = client.chat.completions.stream({ model: "tiny", messages, max_tokens: 2 });
assert.equal((await helper.finalContent()).trim(), "w0 w1");

const completion = await client.completions.create({ model: "tiny", prompt: "a b", max_tokens: 2 });
assert.equal(completion.choices[0].text, "w0 w1");

const left = await client.chat.completions.create({
  model: "tiny", messages, max_tokens: 500, stream: true, stand_in: { gap_s: 0.01 },
});
for await (const _ of left) break; // hangs up

await assert.rejects(client.chat.completions.create({ model: "none", messages }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError);
  return error.code === "model_not_found";
});
const stranger = new OpenAI({ baseURL: `${process.env.BASE_URL}/v1`, apiKey: "tp-wrong", maxRetries: 0 });
await assert.rejects(stranger.chat.completions.create({ model: "tiny", messages }), OpenAI.AuthenticationError);
await assert.rejects(
  client.chat.completions.create({ model: "tiny", messages, stream: true, stand_in: { die: "2" } })
    .then(async (stream) => { for await (const _ of stream); }),
  OpenAI.APIError, // a stream that broke off is no answer
);
await assert.rejects(
  client.chat.completions.create({ model: "tiny", messages, stand_in: { status: 429, retry_after: "2" } }),
  (error) => error instanceof OpenAI.RateLimitError && error.headers.get("retry-after") === "2",
);
console.log("ok");
