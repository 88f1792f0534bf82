/** A turn's live events, and what of them is void. No I/O: see {@link Turn} in `turn.ts` for the stream. */

import type { Outcome } from "./types.js";

/** A model is asked again. */
export interface Retry {
  reason: string;
  attempt?: number;
  after_s?: number;
}

/** One live event. `n` counts the events of a stream from 1, without gaps. */
export type LiveEvent =
  /** A node runs the turn. */
  | { n: number; type: "start" }
  /** The turn, or an answer of its model, begins anew: events from `void_from` up to this one are void. */
  | { n: number; type: "restart"; void_from: number; retry?: Retry }
  /** Some events were lost, or dropped because they were read too slowly. The outcome is complete all the same. */
  | { n: number; type: "missed"; count: number }
  | { n: number; type: "text"; text: string; retry?: Retry }
  | { n: number; type: "thinking"; text: string }
  | { n: number; type: "tool_use"; id: string; name: string; input?: unknown }
  | { n: number; type: "tool_result"; id: string; ok: boolean; text: string }
  | { n: number; type: "usage"; usage: Record<string, unknown> }
  /** The end, always the last. */
  | { n: number; type: "outcome"; outcome: Outcome };

interface Head {
  type: string;
  seq: number;
  owner: number;
  run: string;
  step: number;
}

/** How many steps were durable, the first event behind them, and how long the text was. */
interface Mark {
  step: number;
  n: number;
  length: number;
}

const HEAD = new Set(["v", "agent", "ref", "type", "seq", "owner", "run", "step"]);

/** Turns the messages of one stream into events, in order. */
export class EventReader {
  /** The text so far, without what is void. */
  text = "";
  #n = 0;
  #run: string | undefined;
  #owner = 0;
  #seq = 0;
  #over = new Set<string>();
  #marks: Mark[] = [];
  #answer: { n: number; length: number } = { n: 1, length: 0 };

  /** The events in a message; none for what is no message of a turn, and for the outcome, which arrives by itself. */
  read(body: string): LiveEvent[] {
    const fields = objectIn(body);
    const head = fields && headOf(fields);
    if (!fields || !head) return [];
    // From a former owner that does not know yet that it is fenced.
    if (this.#over.has(head.run) || head.owner < this.#owner) return [];
    if (head.type === "outcome" && head.run !== this.#run && head.seq === 1) return []; // its owner has not run the turn
    const events = head.run === this.#run ? [] : [this.#turnTo(head)];
    if (head.seq <= this.#seq) return events;
    const missed = head.seq - this.#seq - 1;
    this.#seq = head.seq;
    if (missed > 0) events.push({ n: ++this.#n, type: "missed", count: missed });
    if (head.type === "outcome") return events;
    if (head.type === "handover") {
      // All that was sent holds: the next node goes on behind it.
      this.#mark(head.step, this.#n + 1, this.text.length);
      return events;
    }
    // A tool's result is shown once it is durable.
    if (this.#marks.at(-1)?.step !== head.step && head.type !== "tool_result") {
      this.#marks.push({ step: head.step, n: this.#n + 1, length: this.text.length });
    }
    const content = this.#content(head.type, fields);
    if (content) events.push(content);
    if (content?.type !== "text" && content?.type !== "thinking") this.#answer = { n: this.#n + 1, length: this.text.length };
    return events;
  }

  /** The last event. */
  ended(outcome: Outcome): LiveEvent {
    return { n: ++this.#n, type: "outcome", outcome };
  }

  #mark(step: number, n: number, length: number): void {
    this.#marks = this.#marks.filter((mark) => mark.step < step);
    this.#marks.push({ step, n, length });
  }

  /** Begin with the events of a new run of the turn, perhaps the first. */
  #turnTo(head: Head): LiveEvent {
    const dead = this.#run;
    this.#run = head.run;
    this.#owner = head.owner;
    this.#seq = 0;
    if (dead === undefined) {
      this.#marks = [{ step: head.step, n: this.#n + 2, length: 0 }];
      return { n: ++this.#n, type: "start" };
    }
    this.#over.add(dead);
    const from = this.#marks.find((mark) => mark.step >= head.step) ?? { n: this.#n + 1, length: this.text.length };
    this.text = this.text.slice(0, from.length);
    this.#mark(head.step, this.#n + 2, from.length);
    return { n: ++this.#n, type: "restart", void_from: from.n };
  }

  #content(type: string, fields: Record<string, unknown>): LiveEvent | undefined {
    const { text = "", id, name, input, ok = true } = fields;
    if (typeof text !== "string") return undefined;
    const retry = retryIn(fields["retry"]);
    switch (type) {
      case "text":
        if (fields["restart"]) {
          // An answer broke off and is asked for again: its events are void, those before it are not.
          this.text = this.text.slice(0, this.#answer.length);
          return { n: ++this.#n, type: "restart", void_from: this.#answer.n, ...retry };
        }
        this.text += text;
        return { n: ++this.#n, type, text, ...retry };
      case "thinking":
        return { n: ++this.#n, type, text };
      case "tool_use":
        if (typeof id !== "string" || typeof name !== "string") return undefined;
        return { n: ++this.#n, type, id, name, input };
      case "tool_result":
        if (typeof id !== "string") return undefined;
        return { n: ++this.#n, type, id, ok: Boolean(ok), text };
      case "usage":
        return { n: ++this.#n, type, usage: Object.fromEntries(Object.entries(fields).filter(([key]) => !HEAD.has(key))) };
      default:
        return undefined; // `start`, or something newer than this client
    }
  }
}

function objectIn(body: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(body);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined; // anybody may publish to an inbox of a known name
  }
}

function headOf(fields: Record<string, unknown>): Head | undefined {
  const { type, seq, owner = 0, run, step = 0 } = fields;
  if (typeof type !== "string" || typeof seq !== "number" || typeof owner !== "number" || typeof step !== "number") return undefined;
  return { type, seq, owner, step, run: typeof run === "string" && run !== "" ? run : String(owner) };
}

function retryIn(told: unknown): { retry?: Retry } {
  const retry = told as Retry | null | undefined;
  return typeof retry?.reason === "string" ? { retry } : {};
}
