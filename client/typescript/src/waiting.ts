/** How a request is repeated until it is answered. */

import type { MsgHdrs } from "@nats-io/nats-core";
import { AskTimeoutError, errorFrom, MeshError, UnavailableError, type WireError } from "./errors.js";
import { type Exchange, headersOf } from "./exchange.js";
import { json } from "./requests.js";
import type { Outcome } from "./types.js";

export type Reply = Record<string, unknown> & { error?: WireError };

/** Milliseconds until what was sent is sent again, at first and at most. */
const SILENCE = { first: 2_000, most: 20_000 };
/** The same after "nobody serves this" and after `unavailable`. */
const PAUSE = { first: 100, most: 1_000 };
/** Until when an id may be repeated, from the first time that it may have been stored: the server knows it for two minutes. */
const WINDOW = 110_000;
/** For how long nobody may serve a control request until its agent's existence is looked into. */
const ABSENT = 1_000;

/** What is said in a conversation, and what is made of the replies. */
interface Dialogue<T> {
  /** Send; not called while there is no connection. `doubt`: it was sent before, and may have arrived. */
  send(doubt: boolean): void;
  /** The result in a reply, or undefined to wait on. A {@link MeshError} that may be repeated makes it send again. */
  take(about: string, body: string): T | undefined;
  /** May be sent again though it may have arrived. */
  repeats: boolean;
  /** What is sent is stored once, by its id, for as long as the mesh knows that id. */
  once: boolean;
  /** It is stored, so that `once` holds for ever. */
  stored?(): boolean;
  /** Whether it can go on without the subject that the server refuses. */
  without?(subject: string): boolean;
  /** Nobody has served it for so many milliseconds. */
  absent?(since: number): Promise<void>;
  /** The ref, once it is known. */
  ref?(): string | undefined;
}

/** Whether what was refused so can be sent again. */
function isRepeatable(error: unknown): error is MeshError {
  return error instanceof MeshError && (error.code === "unavailable" || error.code === "no_leader");
}

/**
 * Hold a conversation of at most `timeout` milliseconds.
 *
 * What is uncertain is counted: how many of the messages that were sent may have arrived without an answer. Only if it is
 * none, "unavailable" says the truth at the end; else the caller has to know that the request may be carried out.
 */
async function converse<T>(exchange: Exchange, timeout: number, dialogue: Dialogue<T>): Promise<T> {
  const began = performance.now();
  const end = began + timeout;
  let silence = SILENCE.first;
  let pause = PAUSE.first;
  let due = began;
  let open = 0;
  let doubtSince: number | undefined;
  let nobodySince: number | undefined;
  let last: MeshError | undefined;

  const answered = (): void => {
    open = Math.max(0, open - 1);
    if (open === 0) doubtSince = undefined;
  };
  const rest = (now: number): void => {
    due = now + pause;
    pause = Math.min(pause * 2, PAUSE.most);
  };

  for (;;) {
    const now = performance.now();
    if (now >= end) throw gaveUp(timeout, open > 0, last, exchange, dialogue.ref?.());
    if (now >= due && exchange.connected) {
      if (dialogue.once && doubtSince !== undefined && now - doubtSince > WINDOW && !dialogue.stored?.()) throw uncertain();
      dialogue.send(open > 0);
      open += 1;
      doubtSince ??= now;
      due = dialogue.repeats ? now + silence : end;
      silence = Math.min(silence * 2, SILENCE.most);
    }
    const news = await exchange.next(Math.min(exchange.connected ? due : end, end) - performance.now());
    switch (news.kind) {
      case "elapsed":
        break;
      case "connected":
        if (open > 0 && !dialogue.repeats) throw uncertain();
        due = 0;
        silence = SILENCE.first;
        break;
      case "refused":
        if (!dialogue.without?.(news.subject)) throw news.error;
        due = 0;
        break;
      case "nobody":
        answered();
        nobodySince ??= now;
        last = new UnavailableError("unavailable", "no process of the mesh serves this now, or nobody runs the agent; try again");
        await dialogue.absent?.(performance.now() - nobodySince);
        rest(performance.now());
        break;
      case "reply":
        try {
          const result = dialogue.take(news.about, news.body);
          nobodySince = undefined;
          if (result !== undefined) return result;
        } catch (error) {
          if (error instanceof MeshError && error.details["nobody"] === true) {
            exchange.hear({ kind: "nobody" }); // a gateway's word for the same
            break;
          }
          if (!isRepeatable(error) || (!dialogue.repeats && error.details["uncertain"] === true)) throw error;
          if (error.details["uncertain"] !== true) answered();
          last = error;
          rest(performance.now());
        }
    }
  }
}

function uncertain(): UnavailableError {
  const why = "the connection broke before an answer came, and this cannot be sent again without doing it twice";
  return new UnavailableError("unavailable", `${why}; look whether it was done`, { uncertain: true });
}

function gaveUp(timeout: number, sent: boolean, last: MeshError | undefined, exchange: Exchange, ref: string | undefined): MeshError {
  if (sent || ref !== undefined) {
    const known = ref === undefined ? "" : `, which is request ${ref}`;
    return new AskTimeoutError("ask_timeout", `no answer within ${timeout} ms; what was sent${known} goes on`, ref === undefined ? {} : { ref });
  }
  if (!exchange.connected) return new UnavailableError("unavailable", `no connection to a NATS server for ${timeout} ms; try again`);
  return last ?? new UnavailableError("unavailable", `nothing could be sent within ${timeout} ms; try again`);
}

/** A request with one reply. */
export interface Request {
  subject: string;
  body: Uint8Array;
  headers: MsgHdrs;
  repeats: boolean;
  once?: boolean;
  absent?: () => Promise<void>;
}

/**
 * The reply to a request, which is repeated where that is allowed.
 *
 * @throws {@link MeshError}: the reply's; or none came.
 */
export function requestReply(exchange: Exchange, request: Request, timeout: number): Promise<Reply> {
  const { subject, body, headers, repeats, once = false, absent } = request;
  return converse<Reply>(exchange, timeout, {
    repeats,
    once,
    send: () => exchange.send(subject, body, headers, ""),
    take: (_, text) => replyIn(text),
    absent: async (since) => {
      if (since >= ABSENT) await absent?.();
    },
  });
}

/** A prompt whose outcome is waited for. */
export interface Asking {
  root: string;
  agent: string;
  body: Uint8Array;
  headers: Record<string, string | undefined>;
}

/**
 * The outcome of a prompt: one request and one reply, where all goes well.
 *
 * When no answer comes, the same message is told with the same id. That stores nothing twice, lets the outcome come here as
 * before, and says the ref, by which the request can be polled for as long as it takes: an ask could be repeated for two minutes.
 */
export function askFor(exchange: Exchange, { root, agent, body, headers }: Asking, timeout: number): Promise<Outcome> {
  const id = headers["Nats-Msg-Id"];
  const asked = headersOf(headers);
  const [ask, tell, poll] = ["ask", "tell", "poll"].map((way) => `${root}.${way}.${agent}`) as [string, string, string];
  const forbidden = new Set<string>();
  let ref: string | undefined;

  return converse<Outcome>(exchange, timeout, {
    repeats: true,
    once: true,
    stored: () => ref !== undefined,
    ref: () => ref,
    without: (subject) => (subject === tell || subject === poll) && forbidden.add(subject).has(subject),
    send(doubt) {
      if (ref !== undefined) {
        if (!forbidden.has(poll)) exchange.send(poll, json({ ref }), headersOf({ "Mesh-Key": headers["Mesh-Key"] }), "poll");
      } else if (doubt && !forbidden.has(tell)) {
        exchange.send(tell, body, headersOf({ ...headers, "Mesh-Reply-To": exchange.address("") }), "tell");
      } else {
        exchange.send(ask, body, asked, "");
      }
    },
    take(about, text) {
      if (about === "tell") {
        ref = String(replyIn(text)["ref"]);
        return undefined;
      }
      if (about === "poll") {
        const polled = objectIn(text);
        return polled["status"] === "completed" ? outcomeOf(polled["outcome"] as Outcome, id) : undefined;
      }
      const outcome = outcomeOf(objectIn(text) as unknown as Outcome, id);
      const error = outcome?.error;
      // Without a ref it is the mesh's word that it could not take the prompt, or could not read the outcome.
      if (error !== undefined && outcome?.ref === "" && isRepeatable(errorFrom(error))) throw errorFrom(error);
      return outcome;
    },
  });
}

/** The outcome, if it is that of the message with this id: refs are given again where mail was put back to an older state. */
function outcomeOf(outcome: Outcome, id: string | undefined): Outcome | undefined {
  return outcome.msg_id === undefined || outcome.msg_id === id?.slice(0, 256) ? outcome : undefined;
}

function replyIn(text: string): Reply {
  const reply = objectIn(text);
  if (reply.error !== undefined) throw errorFrom(reply.error);
  return reply;
}

/** The object in a reply. Anything else is none of the mesh's, and the request is sent again. */
function objectIn(text: string): Reply {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null) return value as Reply;
  } catch {
    // as any other JSON
  }
  throw new UnavailableError("unavailable", "a reply is none of the mesh's", { uncertain: true });
}
