import type { NatsConnection } from "@nats-io/nats-core";
import { errorFrom, MeshError, NotFoundError, UnavailableError, type WireError } from "./errors.js";
import { type Exchange, headersOf, Line, LIVE } from "./exchange.js";
import { agentName, json, mailHeaders, promptOf } from "./requests.js";
import { begin } from "./tracing.js";
import { Turn } from "./turn.js";
import type { Answer, Due, MailOptions, Outcome, Poll, PromptOptions, Receipt, Status, WaitOptions } from "./types.js";
import { askFor, type Asking, type Reply, requestReply } from "./waiting.js";

/** Default times, in milliseconds. */
export const TIMEOUTS = { ask: 600_000, mail: 30_000, control: 10_000 } as const;

/** Settings of a client. */
export interface MeshOptions {
  /** The mesh's root token. */
  root?: string;
  /** Prefix of the inboxes on which answers arrive, as the NATS user's permissions want it. */
  inboxPrefix?: string;
}

/**
 * A client of one mesh, over a NATS connection of the caller's.
 *
 * Each call may be made at any time and by many callers at once. What was sent is sent again, with its id, until it is
 * answered: a connection that breaks, a server that restarts or a node that dies costs neither the answer nor a second turn.
 */
export class Mesh implements AsyncDisposable {
  readonly #line: Line;
  readonly #root: string;

  /** The connection stays the caller's: `close` does not end it. {@link connect} makes one for you. */
  constructor(
    readonly connection: NatsConnection,
    { root = "mesh", inboxPrefix }: MeshOptions = {},
  ) {
    this.#root = root;
    this.#line = new Line(connection, inboxPrefix);
  }

  /**
   * Prompt an agent and wait for its answer.
   *
   * @param prompt - text, or bytes that go as they are.
   * @throws {@link MeshError} as the request ended, its code telling how; `ask_timeout`: the time is over and the turn
   * goes on; `unavailable`: nobody took the prompt. The signal's reason, when it is aborted.
   */
  async ask(agent: string, prompt: string | Uint8Array, options: PromptOptions = {}): Promise<Answer> {
    const call = begin("invoke_agent", agent, options.context);
    try {
      const outcome = answerIn(await this.#asked(agent, prompt, options, call.headers));
      call.end();
      return outcome;
    } catch (error) {
      call.end(error);
      throw error;
    }
  }

  /**
   * As {@link ask}, and watch the turn as it runs.
   *
   * @example
   * ```ts
   * const turn = mesh.stream("coder", "rename the module");
   * for await (const event of turn) if (event.type === "text") process.stdout.write(event.text);
   * console.log((await turn.outcome()).ok);
   * ```
   */
  stream(agent: string, prompt: string | Uint8Array, options: PromptOptions = {}): Turn {
    const call = begin("invoke_agent", agent, options.context);
    return new Turn(options.signal, async (signal, onLive) => {
      try {
        const outcome = await this.#asked(agent, prompt, { ...options, signal }, call.headers, onLive);
        call.end(outcome.ok ? undefined : errorFrom(outcome.error ?? { code: "error" }));
        return outcome;
      } catch (error) {
        call.end(error);
        throw error;
      }
    });
  }

  /** Prompt an agent without waiting for its answer: it is stored when this resolves. Throws as {@link ask}, but for outcomes. */
  async tell(agent: string, prompt: string | Uint8Array, options: PromptOptions = {}): Promise<Receipt> {
    const { body, headers } = promptOf(agentName(agent), prompt, options);
    return this.#mail("tell", agent, body, headers, options);
  }

  /** Send an agent an event, any JSON value. It is stored when this resolves. */
  async notify(agent: string, event: unknown, options: MailOptions = {}): Promise<Receipt> {
    const headers = { ...mailHeaders(agentName(agent), options), "Content-Type": "application/json" };
    return this.#mail("event-to", agent, json(event), headers, options);
  }

  /** What became of a request. */
  async poll(agent: string, ref: string, options: WaitOptions & { meshKey?: string } = {}): Promise<Poll> {
    const subject = `${this.#root}.poll.${agentName(agent)}`;
    const reply = await this.#request(subject, json({ ref }), { "Mesh-Key": options.meshKey }, options);
    return reply["status"] === "completed" ? { status: "completed", outcome: reply["outcome"] as Outcome } : (reply as unknown as Poll);
  }

  /** What an agent is doing; with `content` also its own state. */
  async status(agent: string, options: WaitOptions & { content?: boolean } = {}): Promise<Status> {
    return (await this.#control(options.content ? "state" : "status", agent, {}, options)) as unknown as Status;
  }

  /** Kill the running turn; with `ref` only if it answers that request. Without one this is not repeated behind a broken connection. */
  async interrupt(agent: string, options: WaitOptions & { ref?: string } = {}): Promise<boolean> {
    const { ref } = options;
    return Boolean((await this.#control("interrupt", agent, { ref }, options, ref !== undefined))["interrupted"]);
  }

  /** Take out a prompt that waits; with `tree` also end one that runs, and what was asked on its behalf. */
  async cancel(agent: string, ref: string, options: WaitOptions & { tree?: boolean; meshKey?: string } = {}): Promise<boolean> {
    const { tree, meshKey } = options;
    return Boolean((await this.#control("cancel", agent, { ref, tree }, options, true, { "Mesh-Key": meshKey }))["cancelled"]);
  }

  /** Let an agent go on that is halted or has failed. */
  async resume(agent: string, options: WaitOptions = {}): Promise<boolean> {
    return Boolean((await this.#control("resume", agent, {}, options))["resumed"]);
  }

  /**
   * Send the agent `event` at a time. A timer of that id is replaced.
   *
   * @returns when it is due, RFC 3339. With `after` this is not repeated behind a broken connection.
   */
  async setTimer(agent: string, id: string, event: unknown, due: Due, options: WaitOptions = {}): Promise<string> {
    const at = due.at instanceof Date ? due.at.toISOString() : due.at;
    const after_s = due.after === undefined ? undefined : due.after / 1000;
    const every_s = due.every === undefined ? undefined : due.every / 1000;
    const reply = await this.#control("set_timer", agent, { id, event, at, after_s, every_s }, options, at !== undefined);
    return String(reply["due"]);
  }

  /** Remove a timer. */
  async cancelTimer(agent: string, id: string, options: WaitOptions = {}): Promise<boolean> {
    return Boolean((await this.#control("cancel_timer", agent, { id }, options))["cancelled"]);
  }

  /** End all waits with `unavailable`. What was sent goes on. */
  async close(): Promise<void> {
    this.#line.close(new UnavailableError("unavailable", "this client was closed"));
  }

  /** As {@link close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Hold a conversation, and end it. */
  async #with<T>(signal: AbortSignal | undefined, hold: (exchange: Exchange) => Promise<T>): Promise<T> {
    const exchange = this.#line.open(signal);
    try {
      return await hold(exchange);
    } finally {
      exchange.close();
    }
  }

  async #asked(
    agent: string,
    prompt: string | Uint8Array,
    options: PromptOptions,
    trace: Record<string, string>,
    onLive?: (body: string) => void,
  ): Promise<Outcome> {
    const { body, headers } = promptOf(agentName(agent), prompt, options);
    return this.#with(options.signal, (exchange) => {
      exchange.onLive = onLive;
      const streamTo = onLive && exchange.address(LIVE);
      const asking: Asking = { root: this.#root, agent, body, headers: { ...headers, ...trace, "Mesh-Stream-To": streamTo } };
      return askFor(exchange, asking, options.timeout ?? TIMEOUTS.ask);
    });
  }

  async #mail(way: string, agent: string, body: Uint8Array, headers: Record<string, string | undefined>, options: MailOptions): Promise<Receipt> {
    const call = begin("send", agent, options.context);
    try {
      const given = headersOf({ ...headers, ...call.headers });
      const reply = await this.#with(options.signal, (exchange) =>
        requestReply(exchange, { subject: `${this.#root}.${way}.${agent}`, body, headers: given, repeats: true, once: true }, options.timeout ?? TIMEOUTS.mail),
      );
      call.end();
      return { ref: String(reply["ref"]), duplicate: reply["duplicate"] === true };
    } catch (error) {
      call.end(error);
      throw error;
    }
  }

  async #request(subject: string, body: Uint8Array, headers: Record<string, string | undefined>, options: WaitOptions): Promise<Reply> {
    const given = headersOf(headers);
    return this.#with(options.signal, (exchange) =>
      requestReply(exchange, { subject, body, headers: given, repeats: true }, options.timeout ?? TIMEOUTS.mail),
    );
  }

  async #control(
    operation: string,
    agent: string,
    body: Record<string, unknown>,
    options: WaitOptions,
    repeats = true,
    headers: Record<string, string | undefined> = {},
  ): Promise<Reply> {
    const subject = `${this.#root}.live.control-${operation}.${agentName(agent)}`;
    const given = headersOf(headers);
    const absent = () => this.#checkAbsence(agent, options.signal);
    return this.#with(options.signal, (exchange) =>
      requestReply(exchange, { subject, body: json(body), headers: given, repeats, absent }, options.timeout ?? TIMEOUTS.control),
    );
  }

  /**
   * Throw if no agent has this name. A caller cannot read the registry, but the mesh checks the name of an agent before it looks
   * at a prompt: an empty one, which is never stored, is `not_found` then, and else `bad_request`.
   */
  async #checkAbsence(agent: string, signal: AbortSignal | undefined): Promise<void> {
    const request = { subject: `${this.#root}.tell.${agent}`, body: new Uint8Array(), headers: headersOf({}), repeats: true };
    try {
      await this.#with(signal, (exchange) => requestReply(exchange, request, 1000));
    } catch (error) {
      if (error instanceof NotFoundError || !(error instanceof MeshError)) throw error;
    }
  }
}

function answerIn(outcome: Outcome): Answer {
  if (!outcome.ok) throw errorFrom(outcome.error ?? ({ code: "error" } satisfies WireError), outcome.ref);
  return { ...outcome, ok: true, text: outcome.text ?? "" };
}
