// What applications do with OpenAI's SDK, as its README shows it: python_flows.py does the same.
// Reads {url, token, jobs: [{flow, model, tag}]} from stdin, and writes a list of results.
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const { url, token, jobs } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: url, apiKey: token, maxRetries: 0 });

const TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" }, days: { type: "array" } } },
  },
};
const LIMIT = 3000;

async function toolLoop(model, tag, next) {
  const messages = [{ role: "user", content: tag }];
  for (;;) {
    const message = await next({ model, messages, tools: [TOOL], max_completion_tokens: LIMIT });
    messages.push(message);
    if (!message.tool_calls?.length) return { answer: message.content, reasoning: message.reasoning_content ?? null };
    for (const call of message.tool_calls) {
      messages.push({ role: "tool", tool_call_id: call.id, content: `rain ${call.function.arguments}` });
    }
  }
}

const plain = async (body) => (await client.chat.completions.create(body)).choices[0].message;

const FLOWS = {
  loop: (model, tag) => toolLoop(model, tag, plain),
  reasoning: (model, tag) => toolLoop(model, tag, (body) => plain({ ...body, reasoning_effort: "low" })),
  streamed: (model, tag) =>
    toolLoop(model, tag, async (body) => {
      const completion = await client.chat.completions.stream(body).finalChatCompletion();
      return completion.choices[0].message;
    }),
  async structured(model, tag) {
    const Weather = z.object({ city: z.string(), celsius: z.number() });
    const completion = await client.chat.completions.parse({
      model,
      messages: [{ role: "user", content: tag }],
      response_format: zodResponseFormat(Weather, "weather"),
      max_completion_tokens: LIMIT,
    });
    return { answer: completion.choices[0].message.parsed, reasoning: null };
  },
  // The SDK's own loop
  async runner(model, tag) {
    const get_weather = (given) => `rain ${given}`;
    const runner = client.chat.completions.runTools({
      model,
      messages: [{ role: "user", content: tag }],
      tools: [{ type: "function", function: { ...TOOL.function, function: get_weather } }],
      max_completion_tokens: LIMIT,
    });
    return { answer: await runner.finalContent(), reasoning: null };
  },
};

const results = await Promise.all(
  jobs.map(({ flow, model, tag }) =>
    FLOWS[flow](model, tag).catch((error) => ({ failed: `${error?.constructor?.name}: ${error?.message}` })),
  ),
);
process.stdout.write(JSON.stringify(results));
