// node client.mjs MODE MODEL OPTIONS PICTURE: one call of the npm package openai; the answer as JSON on stdout.
// A line on stdin aborts the request.
import OpenAI from "openai";

const [mode, model, options, picture] = process.argv.slice(2);
const client = new OpenAI(JSON.parse(options));
const messages = [{ role: "user", content: "Hello?" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const controller = new AbortController();
process.stdin.once("data", () => controller.abort()).unref?.();

const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");

const modes = {
  async whole() {
    const answer = await client.chat.completions.create({ model, messages }, { signal: controller.signal });
    say(answer.choices[0].message.content);
  },
  async stream() {
    const body = { model, messages, stream: true };
    const chunks = await client.chat.completions.create(body, { signal: controller.signal });
    for await (const chunk of chunks) say(chunk.choices[0]?.delta?.content ?? "");
  },
  async usage() {
    const body = { model, messages, stream: true, stream_options: { include_usage: true } };
    const found = [];
    for await (const chunk of await client.chat.completions.create(body)) found.push(chunk.usage ?? null);
    say(found);
  },
  async tools() {
    const answer = await client.chat.completions.create({ model, messages, tools });
    say(answer.choices[0].message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]));
  },
  async schema() {
    const schema = { type: "object", properties: { city: { const: "Paris" } }, required: ["city"] };
    const response_format = { type: "json_schema", json_schema: { name: "place", schema } };
    const answer = await client.chat.completions.create({ model, messages, response_format, max_tokens: 60 });
    say(JSON.parse(answer.choices[0].message.content));
  },
  async picture() {
    const content = JSON.parse(picture);
    const answer = await client.chat.completions.create({ model, messages: [{ role: "user", content }] });
    say(answer.choices[0].message.content);
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model, input: ["one", "two", "one"] });
    say(answer.data.map((row) => row.embedding));
  },
  async responses() {
    say((await client.responses.create({ model, input: "Hello?" })).output_text);
  },
  async retrieve() {
    say((await client.models.retrieve(model)).id);
  },
  async list() {
    const ids = [];
    for await (const each of client.models.list()) ids.push(each.id);
    say(ids);
  },
  async headers() {
    const { data, response } = await client.chat.completions.create({ model, messages }).withResponse();
    say([data.model, response.headers.get("x-rolecall-model"), response.headers.get("x-request-id")]);
  },
};

try {
  await modes[mode]();
} catch (error) {
  process.stderr.write(`${error.constructor.name} ${error.status ?? "-"} ${error.code ?? "-"}: ${error.message}\n`);
  process.exitCode = 1;
}
process.stdin.destroy();
