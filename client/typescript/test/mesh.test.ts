import assert from "node:assert/strict";
import { test } from "node:test";
import { errors } from "@nats-io/nats-core";
import { AskTimeoutError, type LiveEvent, Mesh, NotFoundError, NotPermittedError, TooLargeError, UnavailableError } from "../src/index.js";
import { FakeConnection, outcome, type Sent } from "./line.js";

const refuse = (code: string, details: object = {}): string =>
  JSON.stringify({ v: 1, agent: "a", ref: "", ok: false, error: { code, message: "no", details } });
const failure = (code: string, details: object = {}): string => JSON.stringify({ v: 1, error: { code, message: "no", details } });

test("an ask is one message, and its ref is text of any size", async () => {
  const line = new FakeConnection((sent, answer) => answer(outcome(sent)));
  const answer = await new Mesh(line.nats).ask("a", "hello", { key: "k", metadata: { x: 1 } });
  assert.equal(answer.ref, "9007199254740993");
  assert.equal(line.sent.length, 1);
  assert.equal(line.sent[0]!.subject, "mesh.ask.a");
  assert.equal(line.sent[0]!.headers["Nats-Msg-Id"], "a.k");
  assert.deepEqual(JSON.parse(line.sent[0]!.text), { prompt: "hello", metadata: { x: 1 } });
});

test("what ends without an answer rejects with the class of its code", async () => {
  const line = new FakeConnection((sent, answer) => answer(outcome(sent, { ok: false, error: { code: "new_one", message: "m" } })));
  await assert.rejects(new Mesh(line.nats).ask("a", "x"), { code: "new_one", ref: "9007199254740993", message: "m" });
});

test("an ask that nobody takes is repeated with its id", async () => {
  const line = new FakeConnection((sent, answer) => (line.sent.length < 3 ? answer() : answer(outcome(sent))));
  await new Mesh(line.nats).ask("a", "x");
  assert.equal(new Set(line.sent.map((sent) => sent.headers["Nats-Msg-Id"])).size, 1);
  assert.equal(line.sent.length, 3);
});

test("a broken connection: the same message is told, and then its ref is polled", async () => {
  let asked: Sent | undefined;
  const line = new FakeConnection((sent, answer) => {
    if (sent.subject === "mesh.ask.a") {
      asked = sent;
      line.tell({ type: "disconnect", server: "" });
      line.tell({ type: "reconnect", server: "" });
    } else if (sent.subject === "mesh.tell.a") {
      answer('{"v":1,"ref":"18014398509481985","duplicate":true}');
      line.tell({ type: "reconnect", server: "" });
    } else {
      assert.deepEqual(JSON.parse(sent.text), { ref: "18014398509481985" });
      answer(`{"v":1,"status":"completed","outcome":${outcome(asked!)}}`);
    }
  });
  assert.equal((await new Mesh(line.nats).ask("a", "x")).text, "yes");
  const [ask, tell] = line.sent;
  assert.equal(tell!.headers["Nats-Msg-Id"], ask!.headers["Nats-Msg-Id"]);
  assert.equal(tell!.headers["Mesh-Reply-To"], ask!.reply);
  assert.equal(tell!.text, ask!.text);
});

test("nothing is sent while the connection is down", async () => {
  const line = new FakeConnection((sent, answer) => answer(outcome(sent)));
  const mesh = new Mesh(line.nats);
  line.tell({ type: "disconnect", server: "" });
  await new Promise(setImmediate);
  await assert.rejects(mesh.ask("a", "x", { timeout: 20 }), UnavailableError);
  assert.equal(line.sent.length, 0);
  const asked = mesh.ask("a", "x");
  line.tell({ type: "reconnect", server: "" });
  assert.equal((await asked).text, "yes");
});

test("the outcome of another message is passed over", async () => {
  const line = new FakeConnection((sent, answer) => {
    answer(outcome(sent, { msg_id: "a.other", text: "no" }));
    answer(outcome(sent));
  });
  assert.equal((await new Mesh(line.nats).ask("a", "x")).text, "yes");
});

test("what is no reply of the mesh is asked again", async () => {
  const line = new FakeConnection((_, answer) => answer(line.sent.length === 1 ? "<html>" : '{"v":1,"ref":"7"}'));
  assert.deepEqual(await new Mesh(line.nats).tell("a", "x"), { ref: "7", duplicate: false });
});

test("time-outs: unknown whether it goes on, or not sent at all", async () => {
  const silent = new FakeConnection(() => undefined);
  await assert.rejects(new Mesh(silent.nats).ask("a", "x", { timeout: 500 }), AskTimeoutError);
  const nobody = new FakeConnection(
    (_, answer) => answer(),
    (serving) => serving(), // so that nothing is open when the time is over
  );
  await assert.rejects(new Mesh(nobody.nats).ask("a", "x", { timeout: 500 }), { code: "unavailable" });
});

test("a signal ends the wait with its reason", async () => {
  const line = new FakeConnection(() => undefined);
  const mesh = new Mesh(line.nats);
  const stop = new AbortController();
  const asked = mesh.ask("a", "x", { signal: stop.signal });
  stop.abort();
  await assert.rejects(asked, { name: "AbortError" });
  await assert.rejects(mesh.tell("a", "x", { signal: stop.signal }), { name: "AbortError" });
  await assert.rejects(mesh.ask("a", "x", { signal: AbortSignal.timeout(5) }), { name: "TimeoutError" });
});

test("a refused inbox ends each wait at once, and the next call tries again", async () => {
  const line = new FakeConnection((sent, answer) => (line.subscriptions === 1 ? line.refuseInbox() : answer(outcome(sent))));
  const mesh = new Mesh(line.nats);
  await assert.rejects(mesh.ask("a", "x"), NotPermittedError);
  assert.equal((await mesh.ask("a", "x")).text, "yes");
});

test("a refused subject is told to the call that used it alone", async () => {
  const line = new FakeConnection((sent, answer) => {
    if (sent.subject === "mesh.ask.b") {
      line.tell({ type: "error", error: new errors.PermissionViolationError("no", "publish", "mesh.ask.b") });
      setTimeout(() => answer(outcome(line.sent[0]!)), 20);
    } else setTimeout(() => answer(outcome(sent)), 20);
  });
  const mesh = new Mesh(line.nats);
  const [a, b] = await Promise.allSettled([mesh.ask("a", "x"), mesh.ask("b", "x")]);
  assert.equal(a.status, "fulfilled");
  assert.ok(b.status === "rejected" && b.reason instanceof NotPermittedError);
});

test("a closed client and a closed connection end all waits", async () => {
  const line = new FakeConnection(() => undefined);
  const mesh = new Mesh(line.nats);
  const first = mesh.ask("a", "x");
  line.end();
  await assert.rejects(first, UnavailableError);
  await assert.rejects(mesh.status("a"), UnavailableError);
});

test("what cannot be sent says so locally", async () => {
  const mesh = new Mesh(new FakeConnection(() => undefined).nats);
  await assert.rejects(mesh.ask("a", "x".repeat(2000)), (error: unknown) => error instanceof TooLargeError && error.details["limit"] === 1000);
  await assert.rejects(mesh.ask("a b", "x"), { code: "bad_request" });
  await assert.rejects(mesh.ask("a", "x", { key: "blank " }), { code: "bad_request" });
});

test("a control request whose agent does not exist is not_found", async () => {
  const line = new FakeConnection((sent, answer) => answer(sent.subject === "mesh.tell.a" ? failure("not_found") : undefined));
  await assert.rejects(new Mesh(line.nats).status("a"), NotFoundError);
});

test("only what may be done twice is repeated behind a broken connection", async () => {
  const line = new FakeConnection((sent, answer) => {
    if (line.sent.filter(({ subject }) => subject === sent.subject).length > 1) answer('{"v":1,"cancelled":true}');
    else line.tell({ type: "reconnect", server: "" });
  });
  const mesh = new Mesh(line.nats);
  assert.equal(await mesh.cancel("a", "1"), true);
  await assert.rejects(mesh.interrupt("a"), (error: unknown) => error instanceof UnavailableError && error.details["uncertain"] === true);
  await assert.rejects(mesh.setTimer("a", "t", 1, { after: 5 }), { code: "unavailable" });
});

test("unavailable is repeated, mailbox_full is not", async () => {
  const line = new FakeConnection((sent, answer) => answer(line.sent.length === 1 ? refuse("unavailable") : outcome(sent)));
  assert.equal((await new Mesh(line.nats).ask("a", "x")).text, "yes");
  const full = new FakeConnection((_, answer) => answer(refuse("mailbox_full")));
  await assert.rejects(new Mesh(full.nats).ask("a", "x"), { code: "mailbox_full" });
});

test("a stream: events in order, the outcome last, and a slow reader misses the oldest", async () => {
  const line = new FakeConnection((sent, answer) => {
    const to = sent.headers["Mesh-Stream-To"]!;
    const event = (seq: number, more: object) => line.deliver(to, JSON.stringify({ v: 1, seq, owner: 1, run: "r", step: 0, ...more }));
    event(1, { type: "start" });
    for (let seq = 2; seq < 12_002; seq++) event(seq, { type: "text", text: "." });
    answer(outcome(sent));
  });
  const turn = new Mesh(line.nats).stream("a", "x");
  await turn.outcome();
  const events: LiveEvent[] = [];
  for await (const event of turn) events.push(event);
  assert.deepEqual(events.slice(0, 2), [{ n: 1, type: "start" }, { n: 2, type: "missed", count: 2001 }]);
  assert.equal(events.at(-1)!.type, "outcome");
  assert.equal(turn.text.length, 10_000);
});
