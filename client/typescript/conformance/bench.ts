/**
 * An ask with one caller, by the library and by hand: the same messages on one NATS client, in turns. `bench AGENT [ROUNDS]`
 * prints a JSON line for each pair, in microseconds.
 */

import { headers, nuid } from "@nats-io/nats-core";
import { connect } from "@nats-io/transport-node";
import { Mesh } from "../src/index.js";

const [agent = "bench", rounds = "200"] = process.argv.slice(2);
const connection = await connect({ servers: process.env["MESH_NATS_URL"] ?? process.env["MESH_CONFORMANCE_URL"] ?? "nats://127.0.0.1:4222" });
const mesh = new Mesh(connection);

async function byHand(): Promise<string> {
  const given = headers();
  given.set("Nats-Msg-Id", `${agent}.${nuid.next()}`);
  const reply = await connection.request(`mesh.ask.${agent}`, "hello", { timeout: 10_000, headers: given });
  return reply.json<{ text: string }>().text;
}

async function byLibrary(): Promise<string> {
  return (await mesh.ask(agent, "hello", { timeout: 10_000 })).text;
}

async function timed(ask: () => Promise<string>): Promise<number> {
  const began = performance.now();
  await ask();
  return Math.round((performance.now() - began) * 1000);
}

for (let warm = 0; warm < 50; warm++) await Promise.all([byHand(), byLibrary()]);
for (let round = 0; round < Number(rounds); round++) {
  const [hand, library] = round % 2 ? [await timed(byHand), await timed(byLibrary)] : [await timed(byLibrary), await timed(byHand)].reverse();
  console.log(JSON.stringify({ hand_us: hand, library_us: library }));
}
await mesh.close();
await connection.drain();
