/** A NATS connection whose server is the test: what is published is seen, and answered as the test likes. */

import { EventEmitter, on } from "node:events";
import { errors, headers, type Msg, type MsgHdrs, type NatsConnection, type Status } from "@nats-io/nats-core";

export interface Sent {
  subject: string;
  text: string;
  reply: string;
  headers: Record<string, string>;
}

/** Each message goes to `serve`, with a function that answers it (no text: nobody serves the subject). */
export class FakeConnection {
  readonly sent: Sent[] = [];
  readonly info = { max_payload: 1000 };
  #events = new EventEmitter();
  #callback: ((error: Error | null, message: Msg) => void) | undefined;
  #closed!: (error?: Error) => void;
  #whenClosed = new Promise<void | Error>((resolve) => (this.#closed = resolve));
  subscriptions = 0;

  /** `later` says when a message is served. */
  constructor(
    private readonly serve: (sent: Sent, answer: (text?: string) => void) => void,
    private readonly later: (serving: () => void) => void = setImmediate,
  ) {}

  get nats(): NatsConnection {
    return this as unknown as NatsConnection;
  }

  subscribe(_: string, { callback }: { callback: (error: Error | null, message: Msg) => void }): { unsubscribe(): void } {
    this.subscriptions += 1;
    this.#callback = callback;
    return { unsubscribe: () => (this.#callback = undefined) };
  }

  publish(subject: string, body: Uint8Array, { reply, headers: given }: { reply: string; headers?: MsgHdrs }): void {
    const sent: Sent = { subject, text: new TextDecoder().decode(body), reply, headers: {} };
    for (const name of given?.keys() ?? []) sent.headers[name] = given!.get(name);
    this.sent.push(sent);
    this.later(() => this.serve(sent, (text) => this.deliver(reply, text)));
  }

  deliver(subject: string, text?: string): void {
    const none = headers(503, "No Responders");
    const data = new TextEncoder().encode(text ?? "");
    this.#callback?.(null, { subject, data, string: () => text ?? "", ...(text === undefined ? { headers: none } : {}) } as unknown as Msg);
  }

  refuseInbox(): void {
    const subject = "_INBOX.x.*";
    this.#callback?.(new errors.PermissionViolationError("no subscription", "subscription", subject), {} as Msg);
  }

  tell(status: Status): void {
    this.#events.emit("status", status);
  }

  async *status(): AsyncIterable<Status> {
    for await (const [status] of on(this.#events, "status")) yield status as Status;
  }

  closed(): Promise<void | Error> {
    return this.#whenClosed;
  }

  isClosed(): boolean {
    return false;
  }

  end(error?: Error): void {
    this.#closed(error);
  }
}

export const outcome = (sent: Sent, more: object = {}): string =>
  JSON.stringify({ v: 1, agent: "a", ref: "9007199254740993", ok: true, text: "yes", msg_id: sent.headers["Nats-Msg-Id"], ...more });
