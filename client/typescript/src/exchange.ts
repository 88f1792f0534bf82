/**
 * One subscription for all answers of a client, and the conversations that wait on it.
 *
 * `nats.js` drops what is published while the connection is down, and ends its own requests after one time-out. So a
 * conversation keeps its address for as long as it lasts, and hears of whatever makes it worth sending again: nobody served
 * the subject, the connection is back, or some time has gone by.
 */

import { createInbox, errors, headers, type Msg, type MsgHdrs, type NatsConnection, type Subscription } from "@nats-io/nats-core";
import { BadRequestError, type MeshError, NotPermittedError, TooLargeError, UnavailableError } from "./errors.js";

/** What a conversation hears. `about` is the part of its address that the reply came to. */
export type News =
  | { kind: "reply"; about: string; body: string }
  | { kind: "nobody" }
  | { kind: "connected" }
  | { kind: "refused"; subject: string; error: MeshError }
  | { kind: "elapsed" };

/** About what the live events of a turn are. */
export const LIVE = "live";

const ELAPSED: News = { kind: "elapsed" };

/** One conversation: it sends to the mesh, and hears what comes to its address. */
export class Exchange {
  #news: News[] = [];
  #resume: ((news: News) => void) | undefined;
  #fail: ((reason: unknown) => void) | undefined;
  #over: { reason: unknown } | undefined;
  /** Takes live events. */
  onLive: ((body: string) => void) | undefined;
  /** The subjects that were sent to. */
  readonly subjects = new Set<string>();

  constructor(
    private readonly line: Line,
    private readonly token: string,
    private readonly signal: AbortSignal | undefined,
  ) {
    signal?.addEventListener("abort", this.#onAbort);
  }

  #onAbort = (): void => this.end(this.signal?.reason);

  /** The address for answers about `about`. */
  address(about: string): string {
    return this.line.address(this.token, about);
  }

  /** Whether there is a connection to send on. */
  get connected(): boolean {
    return this.line.connected;
  }

  /**
   * Send a message whose answer comes as news about `about`. While there is no connection nothing is sent.
   *
   * @throws {@link TooLargeError}, {@link BadRequestError}: it cannot be sent at all.
   */
  send(subject: string, body: Uint8Array, given: MsgHdrs | undefined, about: string): void {
    this.subjects.add(subject);
    this.line.publish(subject, body, given, this.address(about));
  }

  /** The next news, or `elapsed` after `ms` milliseconds. Rejects when the conversation was ended. */
  next(ms: number): Promise<News> {
    const first = this.#news.shift();
    if (first !== undefined) return Promise.resolve(first);
    if (this.#over !== undefined) return Promise.reject(this.#over.reason);
    return new Promise((resolve, reject) => {
      // Node takes a delay above 2^31-1 for none.
      const timer = setTimeout(() => this.#settle()?.(ELAPSED), Math.min(Math.max(ms, 0), 2 ** 31 - 1));
      this.#resume = (news) => (clearTimeout(timer), resolve(news));
      this.#fail = (reason) => (clearTimeout(timer), reject(reason));
    });
  }

  #settle(): ((news: News) => void) | undefined {
    const resume = this.#resume;
    this.#resume = this.#fail = undefined;
    return resume;
  }

  /** Tell the conversation. */
  hear(news: News): void {
    const resume = this.#settle();
    if (resume === undefined) this.#news.push(news);
    else resume(news);
  }

  /** End the wait with `reason`, once what has come before is read. */
  end(reason: unknown): void {
    this.#over ??= { reason };
    const fail = this.#fail;
    this.#settle();
    fail?.(reason);
  }

  /** Forget the conversation. */
  close(): void {
    this.signal?.removeEventListener("abort", this.#onAbort);
    this.line.forget(this.token);
  }
}

/** All conversations on one connection. */
export class Line {
  #open = new Map<string, Exchange>();
  #count = 0;
  #subscription: Subscription | undefined;
  #prefix: string;
  #closed: UnavailableError | undefined;
  connected = true;

  constructor(
    private readonly connection: NatsConnection,
    inboxPrefix: string | undefined,
  ) {
    this.#prefix = `${createInbox(inboxPrefix)}.`;
    void this.#watch();
    void connection.closed().then((error) => {
      const why = error instanceof Error ? `: ${error.message}` : "";
      const denied = error instanceof errors.AuthorizationError || error instanceof errors.UserAuthenticationExpiredError;
      this.close(
        denied
          ? new NotPermittedError("not_permitted", `the NATS server refuses this user${why}`, {}, { cause: error })
          : new UnavailableError("unavailable", `the NATS connection is closed${why}`),
      );
    });
  }

  /**
   * Begin a conversation.
   *
   * @throws the signal's reason, if it is aborted already; {@link UnavailableError}: the client or its connection is closed.
   */
  open(signal?: AbortSignal): Exchange {
    signal?.throwIfAborted();
    if (this.#closed !== undefined) throw this.#closed;
    this.#subscription ??= this.connection.subscribe(`${this.#prefix}*`, { callback: this.#onMessage });
    const token = (++this.#count).toString(36);
    const exchange = new Exchange(this, token, signal);
    this.#open.set(token, exchange);
    return exchange;
  }

  address(token: string, about: string): string {
    return `${this.#prefix}${token}${about && `-${about}`}`;
  }

  forget(token: string): void {
    this.#open.delete(token);
  }

  publish(subject: string, body: Uint8Array, given: MsgHdrs | undefined, reply: string): void {
    if (!this.connected) return;
    const limit = this.connection.info?.max_payload ?? Number.MAX_SAFE_INTEGER;
    if (body.length > limit) throw tooLarge(body.length, limit);
    try {
      this.connection.publish(subject, body, given === undefined ? { reply } : { reply, headers: given });
    } catch (error) {
      if (error instanceof errors.InvalidArgumentError && error.message.includes("max_payload")) {
        throw tooLarge(body.length + headersSize(given), limit);
      }
      if (error instanceof errors.InvalidArgumentError || error instanceof errors.InvalidSubjectError) {
        throw new BadRequestError("bad_request", error.message, {}, { cause: error });
      }
      throw new UnavailableError("unavailable", `nothing can be sent: ${String(error)}`, {}, { cause: error });
    }
  }

  /** End all conversations and begin no others. */
  close(reason: MeshError): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    for (const exchange of this.#open.values()) exchange.end(reason);
    this.#open.clear();
    if (!this.connection.isClosed()) this.#subscription?.unsubscribe();
  }

  #onMessage = (error: Error | null, message: Msg): void => {
    if (error !== null) {
      this.#subscription = undefined; // the next call tries again: permissions may have been mended
      this.#refuse(() => true, error);
      return;
    }
    const [token = "", about = ""] = message.subject.slice(this.#prefix.length).split("-", 2);
    const exchange = this.#open.get(token);
    if (exchange === undefined) return; // a late copy of what is known
    if (about === LIVE) exchange.onLive?.(message.string());
    else if (message.data.length === 0 && message.headers?.code === 503) exchange.hear({ kind: "nobody" });
    else exchange.hear({ kind: "reply", about, body: message.string() });
  };

  #refuse(concerns: (exchange: Exchange) => boolean, error: Error): void {
    const subject = error instanceof errors.PermissionViolationError ? error.subject : "";
    const told = new NotPermittedError("not_permitted", `the NATS server refuses it: ${error.message}`, { subject }, { cause: error });
    for (const exchange of this.#open.values()) if (concerns(exchange)) exchange.hear({ kind: "refused", subject, error: told });
  }

  async #watch(): Promise<void> {
    for await (const status of this.connection.status()) {
      if (status.type === "disconnect") this.connected = false;
      else if (status.type === "reconnect") {
        this.connected = true;
        for (const exchange of this.#open.values()) exchange.hear({ kind: "connected" });
      } else if (status.type === "error" && status.error instanceof errors.PermissionViolationError) {
        const { operation, subject } = status.error;
        if (operation === "publish") this.#refuse((exchange) => exchange.subjects.has(subject), status.error);
      }
    }
  }
}

/** Headers of a message; names go over the wire as they are given. */
export function headersOf(values: Record<string, string | undefined>): MsgHdrs {
  const made = headers();
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined) continue;
    try {
      made.set(name, value);
    } catch (error) {
      throw new BadRequestError("bad_request", `the header ${name} cannot be sent: ${String(error)}`, {}, { cause: error });
    }
  }
  return made;
}

function headersSize(given: MsgHdrs | undefined): number {
  let size = given === undefined ? 0 : "NATS/1.0\r\n\r\n".length;
  for (const name of given?.keys() ?? []) size += Buffer.byteLength(`${name}: ${given?.get(name)}\r\n`);
  return size;
}

function tooLarge(size: number, limit: number): TooLargeError {
  return new TooLargeError("too_large", `the message has ${size} bytes, the server takes ${limit}`, { size, limit });
}
