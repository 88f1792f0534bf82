/** Bodies, headers and names, as docs/protocol.md has them. No I/O. */

import { nuid } from "@nats-io/nats-core";
import { BadRequestError } from "./errors.js";
import type { MailOptions, PromptOptions } from "./types.js";

const TOKEN = /^[A-Za-z0-9_-]{1,64}$/;
const PRINTABLE = /^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$/;
const utf8 = new TextEncoder();

export type Headers = Record<string, string | undefined>;

/** @throws {@link BadRequestError}: `name` cannot be an agent's. */
export function agentName(name: string): string {
  const tokens = name.split(".");
  if (name.length > 128 || tokens.length > 8 || !tokens.every((token) => TOKEN.test(token))) {
    throw new BadRequestError("bad_request", `${JSON.stringify(name)} is no agent's name: 1 to 8 tokens [A-Za-z0-9_-] joined by dots`);
  }
  return name;
}

/** The id of a message: the same one on each repetition, so that it is stored once. */
export function messageId(agent: string, key: string | undefined): string {
  if (key === undefined) return `${agent}.${nuid.next()}`;
  // nats.js trims values of headers, so that an id with outer blanks would be another one than in other languages.
  if (!PRINTABLE.test(key)) throw new BadRequestError("bad_request", "a key is printable ASCII without blanks around it");
  return `${agent}.${key}`;
}

/** Body and headers of a prompt: plain text where that says it all. Bytes go as they are. */
export function promptOf(agent: string, prompt: string | Uint8Array, options: PromptOptions): { body: Uint8Array; headers: Headers } {
  const { metadata, attachments, endBy, budget, meshKey } = options;
  const headers: Headers = {
    ...mailHeaders(agent, options),
    "Mesh-End-By": endBy?.toISOString(),
    "Mesh-Budget": budget && JSON.stringify(budget),
    "Mesh-Key": meshKey,
  };
  if (typeof prompt !== "string") {
    if (metadata || attachments) throw new BadRequestError("bad_request", "a prompt of bytes has no metadata and no attachments");
    return { body: prompt, headers };
  }
  if (!metadata && !attachments && !prompt.startsWith("{")) return { body: utf8.encode(prompt), headers };
  headers["Content-Type"] = "application/json";
  const files = attachments?.map(({ filename, content }) => ({ filename, content: Buffer.from(content).toString("base64") }));
  return { body: json({ prompt, metadata, attachments: files }), headers };
}

/** The headers that a prompt and an event have alike. */
export function mailHeaders(agent: string, { key, expires }: MailOptions): Headers {
  return {
    "Nats-Msg-Id": messageId(agent, key),
    "Mesh-Timeout": expires === undefined ? undefined : String(expires / 1000),
  };
}

/** JSON as bytes; members that are undefined are left out, and undefined itself is `null`. */
export function json(value: unknown): Uint8Array {
  return utf8.encode(JSON.stringify(value) ?? "null");
}
