// What Firefox for desktop does with OpenAI's SDK (mozilla-firefox/firefox, toolkit/components/ml, backend "openai"): its FxA
// token as the key, maxRetries 2; after a 401 the token is dropped, another one is fetched, and the call is made once more.
// Reads {url, tokens, serviceType, purpose, body} from stdin, and writes {text, error, tokens, requests}.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const given = JSON.parse(readFileSync(0, "utf8"));
const tokens = [...given.tokens];
let requests = 0;

function client(token) {
  return new OpenAI({
    baseURL: given.url,
    apiKey: token,
    maxRetries: 2,
    defaultHeaders: { "service-type": given.serviceType, purpose: given.purpose, "x-engine-id": "smart-openai" },
    fetch: (...call) => {
      requests += 1;
      return fetch(...call);
    },
  });
}

async function run(token) {
  const answer = await client(token).chat.completions.create(given.body);
  if (!given.body.stream) return answer.choices[0].message.content;
  let text = "";
  for await (const chunk of answer) text += chunk.choices[0]?.delta?.content ?? "";
  return text;
}

const isAuthError = (error) => error?.status === 401 || String(error?.message).includes("401 status code");

const result = { text: null, error: null, used: 0, requests: 0 };
for (;;) {
  result.used += 1;
  try {
    result.text = await run(tokens.shift());
  } catch (error) {
    if (result.used === 1 && isAuthError(error) && tokens.length) continue;
    // The integer that it shows a text for; in a stream the SDK throws the event's "error"
    result.error = { status: error.status ?? null, code: error.error?.error ?? error.error ?? null, message: error.message };
  }
  break;
}
result.requests = requests;
process.stdout.write(JSON.stringify(result));
