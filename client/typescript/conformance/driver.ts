/** Speaks the line protocol of the conformance kit: a line in, a call of the library, lines out. It knows nothing of cases. */

import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import { context, propagation, trace, TraceFlags } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { credsAuthenticator, type NodeConnectionOptions } from "@nats-io/transport-node";
import { connect, type LiveEvent, type Mesh, MeshError, type PromptOptions, type Turn, type WaitOptions } from "../src/index.js";

type Line = Record<string, any> & { id: string; op: string };

const env = process.env;
const say = (line: unknown): void => void process.stdout.write(`${JSON.stringify(line)}\n`);
const open = new Map<string, AbortController>();
const paused = new Map<string, number>();

function errorOf(error: unknown): unknown {
  if (error instanceof MeshError) return { error: { code: error.code, message: error.message, details: error.details } };
  if (error instanceof Error && error.name === "AbortError") return { error: { code: "cancelled_local", message: error.message } };
  return { error: { code: "client_error", message: error instanceof Error ? (error.stack ?? error.message) : String(error) } };
}

function ms(seconds: number | undefined): number | undefined {
  return seconds === undefined ? undefined : seconds * 1000;
}

function only<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as never;
}

function waiting(line: Line, signal: AbortSignal): WaitOptions {
  return only({ timeout: ms(line["timeout_s"]), signal });
}

function prompting(line: Line, signal: AbortSignal): PromptOptions {
  const end = line["end_by_s"] as number | undefined;
  return only({
    ...waiting(line, signal),
    key: line["key"],
    expires: ms(line["expires_s"]),
    endBy: end === undefined ? undefined : new Date(Date.now() + end * 1000),
    metadata: line["metadata"],
    attachments: line["attachments"]?.map((file: { filename: string; content: string }) => ({
      filename: file.filename,
      content: Buffer.from(file.content, "base64"),
    })),
    budget: line["budget"],
    meshKey: line["mesh_key"],
  });
}

const prompt = (line: Line): string | Uint8Array =>
  line["prompt_base64"] === undefined ? line["prompt"] : Buffer.from(line["prompt_base64"], "base64");

const waitOut = async (id: string): Promise<void> => {
  for (let until = paused.get(id); until !== undefined && until > Date.now(); until = paused.get(id)) {
    await new Promise((resolve) => setTimeout(resolve, until! - Date.now()));
  }
};

async function watch(id: string, turn: Turn): Promise<unknown> {
  let last: LiveEvent | undefined;
  await waitOut(id);
  for await (const event of turn) {
    last = event;
    if (event.type !== "outcome") say({ id, event });
    await waitOut(id);
  }
  if (last?.type !== "outcome") throw new Error("a stream without an end");
  const answer = await turn.answer();
  return { ...answer, shown: turn.text };
}

async function run(mesh: Mesh, line: Line, signal: AbortSignal): Promise<unknown> {
  const { agent, ref } = line;
  const wait = waiting(line, signal);
  const keyed = only({ ...wait, meshKey: line["mesh_key"] as string | undefined });
  switch (line.op) {
    case "ask":
      return mesh.ask(agent, prompt(line), prompting(line, signal));
    case "tell":
      return mesh.tell(agent, prompt(line), prompting(line, signal));
    case "stream":
      return watch(line.id, mesh.stream(agent, prompt(line), prompting(line, signal)));
    case "poll":
      return mesh.poll(agent, ref, keyed);
    case "notify":
      return mesh.notify(agent, line["event"], only({ ...wait, key: line["key"] as string | undefined }));
    case "status":
      return mesh.status(agent, only({ ...wait, content: line["content"] as boolean | undefined }));
    case "interrupt":
      return { interrupted: await mesh.interrupt(agent, only({ ...wait, ref: ref as string | undefined })) };
    case "cancel":
      return { cancelled: await mesh.cancel(agent, ref, only({ ...keyed, tree: line["tree"] as boolean | undefined })) };
    case "resume":
      return { resumed: await mesh.resume(agent, wait) };
    case "set_timer": {
      const every = only({ every: ms(line["every_s"]) });
      const due = line["at"] === undefined ? { after: ms(line["after_s"])!, ...every } : { at: line["at"] as string, ...every };
      return { set: true, due: await mesh.setTimer(agent, line["timer"], line["event"], due, wait) };
    }
    case "cancel_timer":
      return { cancelled: await mesh.cancelTimer(agent, line["timer"], wait) };
    case "cancel_local":
      open.get(line["target"])?.abort();
      return { done: true };
    case "pause_reading":
      paused.set(line["target"], Date.now() + line["s"] * 1000);
      return { done: true };
    default:
      return undefined;
  }
}

async function serve(mesh: Mesh, line: Line): Promise<void> {
  const stop = new AbortController();
  open.set(line.id, stop);
  try {
    const [, traceId, spanId, flags] = /^00-(\w{32})-(\w{16})-(\w\w)$/.exec(line["traceparent"] ?? "") ?? [];
    const given = context.active();
    const current =
      traceId && spanId
        ? trace.setSpanContext(given, { traceId, spanId, traceFlags: parseInt(flags!, 16) & TraceFlags.SAMPLED, isRemote: true })
        : given;
    const result = await context.with(current, () => run(mesh, line, stop.signal));
    say({ id: line.id, ...(result === undefined ? { error: { code: "unsupported" } } : { result }) });
  } catch (error) {
    say({ id: line.id, ...(errorOf(error) as object) });
  } finally {
    open.delete(line.id);
    paused.delete(line.id);
  }
}

context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
propagation.disable();
const creds = env["MESH_CONFORMANCE_CREDS"];
const settings: NodeConnectionOptions = only({
  servers: env["MESH_CONFORMANCE_URL"] ?? "nats://127.0.0.1:4222",
  user: env["MESH_CONFORMANCE_USER"],
  pass: env["MESH_CONFORMANCE_PASSWORD"],
  authenticator: creds === undefined ? undefined : credsAuthenticator(readFileSync(creds)),
  tls: env["MESH_CONFORMANCE_CA"] === undefined ? undefined : { caFile: env["MESH_CONFORMANCE_CA"] },
  inboxPrefix: env["MESH_CONFORMANCE_INBOX_PREFIX"],
});

try {
  const mesh = await connect({ ...settings, root: env["MESH_CONFORMANCE_ROOT"] ?? "mesh" });
  say({ ready: { client: "typescript", version: "0.1.0", nats: "@nats-io/transport-node 3.4.0" } });
  const running = new Set<Promise<void>>();
  for await (const text of createInterface({ input: process.stdin })) {
    if (text.trim() === "") continue;
    const task = serve(mesh, JSON.parse(text) as Line);
    running.add(task);
    void task.finally(() => running.delete(task));
  }
  await Promise.all(running);
  await mesh.close();
} catch (error) {
  say({ ready: errorOf(error) });
}
