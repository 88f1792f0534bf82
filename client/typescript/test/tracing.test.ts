import assert from "node:assert/strict";
import { test } from "node:test";
import { context, ROOT_CONTEXT, trace, TraceFlags } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { Mesh } from "../src/index.js";
import { FakeConnection, outcome } from "./line.js";

test("the active context goes along, spelled as the mesh reads it", async () => {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  const line = new FakeConnection((sent, answer) => answer(outcome(sent)));
  const mesh = new Mesh(line.nats);
  const given = trace.setSpanContext(ROOT_CONTEXT, { traceId: "1".repeat(32), spanId: "2".repeat(16), traceFlags: TraceFlags.SAMPLED });
  await context.with(given, () => mesh.ask("a", "x"));
  await mesh.ask("a", "x", { context: given });
  await mesh.ask("a", "x");
  const expected = `00-${"1".repeat(32)}-${"2".repeat(16)}-01`;
  assert.deepEqual(line.sent.map((sent) => sent.headers["traceparent"]), [expected, expected, undefined]);
});
