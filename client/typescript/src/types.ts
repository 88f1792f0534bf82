import type { Context } from "@opentelemetry/api";
import type { WireError } from "./errors.js";

/** For how long, and until when, a caller waits. */
export interface WaitOptions {
  /** Milliseconds until the call fails with `ask_timeout` or `unavailable`. */
  timeout?: number;
  /** Ends the wait: the call rejects with the signal's reason, as `fetch` does. What was sent goes on. */
  signal?: AbortSignal;
}

/** What a request may cost; the mesh ends it with `budget_exceeded`. */
export interface Budget {
  tokens?: number;
  usd?: number;
  wall_s?: number;
  tool_calls?: number;
}

/** A file that goes with a prompt. */
export interface Attachment {
  filename: string;
  content: Uint8Array;
}

/** Options of mail: what has been stored is never stored twice under one key. */
export interface MailOptions extends WaitOptions {
  /** Idempotency key of the caller's own: the same key again, within two minutes, is the same request. Printable ASCII. */
  key?: string;
  /** Milliseconds, counted from when the server stored the message: if its turn has not begun by then, it is `expired`. */
  expires?: number;
  /** OpenTelemetry's context in place of the active one. */
  context?: Context;
}

/** Options of a prompt. */
export interface PromptOptions extends MailOptions {
  /** Time at which the request ends, answered or not, with `expired`. */
  endBy?: Date;
  metadata?: Record<string, unknown>;
  attachments?: readonly Attachment[];
  budget?: Budget;
  /** 16 to 128 random characters: who polls or cancels the request, or repeats its key, needs the same one. */
  meshKey?: string;
}

/** How a request ended. One for each ref, for ever the same. */
export interface Outcome {
  v: number;
  agent: string;
  ref: string;
  ok: boolean;
  text?: string;
  usage?: Record<string, unknown>;
  duration_ms?: number;
  session_id?: string;
  error?: WireError;
  turn?: number;
  node?: string;
  msg_id?: string;
  stored?: string;
  tools?: Record<string, Record<string, number>>;
}

/** The outcome of a request that was answered. */
export interface Answer extends Outcome {
  ok: true;
  text: string;
}

/** Where mail is stored. */
export interface Receipt {
  /** Of a prompt: what `poll`, `interrupt` and `cancel` take. Text, since a ref can exceed 2^53. */
  ref: string;
  /** The key was used before: this is the first one's ref. */
  duplicate: boolean;
}

/** What became of a request. */
export type Poll = { status: "pending" } | { status: "completed"; outcome: Outcome } | { status: "not_found" };

/** What an agent is doing, as its owner tells it. */
export interface Status {
  name: string;
  kind: string;
  state: "idle" | "processing";
  halted: boolean;
  queued: number;
  current_request: string | null;
  node: string;
  turn: number;
  failed: WireError | null;
  /** With `content`: the agent's own state. */
  agent_state?: unknown;
  [more: string]: unknown;
}

/** When a timer is due: at a time, or so many milliseconds from now, and then again. */
export type Due = ({ at: Date | string; after?: never } | { after: number; at?: never }) & {
  /** Milliseconds between two events of a timer that repeats. */
  every?: number;
};
