// The Anthropic SDK for Node. BASE_URL, KEY, MESSAGE and EVENTS (what the model server answers) come from run.py.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.PACKAGES}/package.json`);
const { Anthropic } = require("@anthropic-ai/sdk");
const client = new Anthropic({ baseURL: process.env.BASE_URL, apiKey: process.env.KEY, maxRetries: 0 });
const asked = { model: "tiny", max_tokens: 8, messages: [{ role: "user", content: "a b c" }] };

const whole = await client.messages.create({ ...asked, stand_in: { raw: process.env.MESSAGE } });
assert.equal(whole.content[0].text, "w0 w1");
assert.equal(whole.usage.output_tokens, 2);

const stream = client.messages.stream({ ...asked, stand_in: { raw: process.env.EVENTS } });
assert.equal(await stream.finalText(), "w0 w1");
assert.equal((await stream.finalMessage()).stop_reason, "end_turn");

const half = process.env.EVENTS.split("event: content_block_stop")[0];
await assert.rejects(client.messages.stream({ ...asked, stand_in: { raw: half } }).finalText(), Anthropic.APIError);

const stranger = new Anthropic({ baseURL: process.env.BASE_URL, apiKey: "tp-wrong", maxRetries: 0 });
await assert.rejects(stranger.messages.create(asked), Anthropic.AuthenticationError);
await assert.rejects(client.messages.create({ ...asked, model: "none" }), Anthropic.NotFoundError);
console.log("ok");
