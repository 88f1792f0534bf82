/**
 * Ask an agent, and watch it answer: `node dist/examples/ask.js AGENT PROMPT...`
 *
 * The server is `MESH_NATS_URL`, or the one on this machine. Ctrl-C ends the wait; the turn goes on.
 */

import { connect, MeshError } from "../src/index.js";

const [agent = "coder", ...words] = process.argv.slice(2);
const stop = new AbortController();
process.once("SIGINT", () => stop.abort());

await using mesh = await connect({ servers: process.env["MESH_NATS_URL"] ?? "nats://127.0.0.1:4222" });
try {
  const turn = mesh.stream(agent, words.join(" ") || "Say hello", { timeout: 120_000, signal: stop.signal });
  for await (const event of turn) {
    if (event.type === "text") process.stdout.write(event.text);
    if (event.type === "restart") process.stdout.write(`\n[void from ${event.void_from}]\n`);
  }
  const { ref, usage } = await turn.answer();
  console.log(`\n${agent} has answered request ${ref}`, usage ?? "");
} catch (error) {
  if (!(error instanceof MeshError)) throw error;
  console.error(`${error.code}: ${error.message}`);
  process.exitCode = 1;
}
