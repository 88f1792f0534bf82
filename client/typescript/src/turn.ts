import { errorFrom } from "./errors.js";
import { EventReader, type LiveEvent } from "./events.js";
import type { Answer, Outcome } from "./types.js";

/** Most messages that wait for a slow reader; beyond that the oldest are dropped, and show as `missed`. */
export const BUFFER = 10_000;

/**
 * A prompt, and the live events of its turn: iterate over it once.
 *
 * Live events are news and can be lost; the outcome is stored and arrives in any case. A loop that is left early ends the wait
 * for it, and not the turn.
 */
export class Turn implements AsyncIterable<LiveEvent> {
  readonly #reader = new EventReader();
  readonly #left = new AbortController();
  readonly #ended: Promise<Outcome>;
  #bodies: string[] = [];
  #read = 0;
  #over: { outcome: Outcome } | { error: unknown } | undefined;
  #wake: (() => void) | undefined;

  /** Made by `Mesh.stream`. */
  constructor(signal: AbortSignal | undefined, wait: (signal: AbortSignal, onLive: (body: string) => void) => Promise<Outcome>) {
    const either = signal === undefined ? this.#left.signal : AbortSignal.any([signal, this.#left.signal]);
    this.#ended = wait(either, (body) => this.#take(body));
    this.#ended.then(
      (outcome) => this.#end({ outcome }),
      (error: unknown) => this.#end({ error }),
    );
  }

  /** The text that has been read so far, without what is void. */
  get text(): string {
    return this.#reader.text;
  }

  /** How the request ended, an error too. Rejects only if no outcome came, as `Mesh.ask` does. Reads no events. */
  outcome(): Promise<Outcome> {
    return this.#ended;
  }

  /** The answer; rejects as `Mesh.ask` does. Reads no events. */
  async answer(): Promise<Answer> {
    const outcome = await this.#ended;
    if (!outcome.ok) throw errorFrom(outcome.error ?? { code: "error" }, outcome.ref);
    return { ...outcome, ok: true, text: outcome.text ?? "" };
  }

  /** The events, the outcome last. */
  async *[Symbol.asyncIterator](): AsyncGenerator<LiveEvent, void, void> {
    try {
      for (;;) {
        const body = this.#bodies[this.#read];
        if (body !== undefined) {
          this.#read += 1;
          yield* this.#reader.read(body);
        } else if (this.#over !== undefined) {
          if ("error" in this.#over) throw this.#over.error;
          yield this.#reader.ended(this.#over.outcome);
          return;
        } else {
          await new Promise<void>((resolve) => (this.#wake = resolve));
        }
      }
    } finally {
      this.#left.abort();
      this.#bodies = [];
    }
  }

  #take(body: string): void {
    if (this.#read > 1_000 || this.#bodies.length - this.#read >= BUFFER) {
      this.#read = Math.max(this.#read, this.#bodies.length - BUFFER + 1);
      this.#bodies.splice(0, this.#read);
      this.#read = 0;
    }
    this.#bodies.push(body);
    this.#news();
  }

  #end(over: { outcome: Outcome } | { error: unknown }): void {
    this.#over = over;
    this.#news();
  }

  #news(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }
}
