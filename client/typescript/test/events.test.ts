import assert from "node:assert/strict";
import { test } from "node:test";
import { EventReader } from "../src/index.js";

const message = (seq: number, type: string, more: object = {}): string => JSON.stringify({ v: 1, seq, type, owner: 1, run: "a", step: 0, ...more });

function read(...bodies: string[]): { events: unknown[]; text: string } {
  const reader = new EventReader();
  const events = bodies.flatMap((body) => reader.read(body));
  return { events, text: reader.text };
}

test("a node dies: what no step had committed is void", () => {
  const { events, text } = read(
    message(1, "start"),
    message(2, "text", { text: "kept " }),
    message(3, "tool_use", { id: "t", name: "look", input: {} }),
    message(4, "tool_result", { id: "t", ok: true, text: "seen", step: 1 }),
    message(5, "text", { text: "void", step: 1 }),
    message(1, "start", { run: "b", owner: 2, step: 1 }),
    message(6, "text", { text: "late", step: 1 }),
    message(2, "text", { text: "anew", run: "b", owner: 2, step: 1 }),
  );
  assert.deepEqual(events.slice(-2), [
    { n: 6, type: "restart", void_from: 5 },
    { n: 7, type: "text", text: "anew" },
  ]);
  assert.equal(text, "kept anew");
});

test("a hand-over voids nothing", () => {
  const { events, text } = read(
    message(1, "start"),
    message(2, "text", { text: "one " }),
    message(3, "handover", { step: 1 }),
    message(1, "start", { run: "b", owner: 2, step: 1 }),
    message(2, "text", { text: "two", run: "b", owner: 2, step: 1 }),
  );
  assert.deepEqual(events[2], { n: 3, type: "restart", void_from: 3 });
  assert.equal(text, "one two");
});

test("an answer that broke off is void from its first event", () => {
  const retry = { reason: "overloaded", attempt: 2 };
  const { events, text } = read(
    message(1, "start"),
    message(2, "text", { text: "half" }),
    message(3, "text", { text: "", restart: true, retry }),
    message(4, "text", { text: "whole" }),
  );
  assert.deepEqual(events[2], { n: 3, type: "restart", void_from: 2, retry });
  assert.equal(text, "whole");
});

test("lost events are counted, unknown ones passed over, and what is no event harms nobody", () => {
  const { events } = read("{", "[1]", '"x"', message(1, "start"), message(2, "news"), message(5, "usage", { tokens: 3 }), message(7, "outcome"));
  assert.deepEqual(events, [
    { n: 1, type: "start" },
    { n: 2, type: "missed", count: 2 },
    { n: 3, type: "usage", usage: { tokens: 3 } },
    { n: 4, type: "missed", count: 1 },
  ]);
});
