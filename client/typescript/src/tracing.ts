/** Spans of a caller, where its process has OpenTelemetry. Without it, or without a tracer, nothing is made up. */

import type * as Api from "@opentelemetry/api";
import { MeshError } from "./errors.js";

const otel: typeof Api | undefined = await import("@opentelemetry/api").catch(() => undefined);
const SCOPE = "agentmesh";

/** The span of one call, and the headers that make the mesh go on with its trace. */
export interface Call {
  /** `traceparent`, `tracestate` and `baggage`, spelled as the mesh reads them. */
  headers: Record<string, string>;
  end(error?: unknown): void;
}

const UNTRACED: Call = { headers: {}, end: () => undefined };

/** Begin the span of a call to `agent`: `name` is `invoke_agent` for one that waits for its answer, else `send`. */
export function begin(name: "invoke_agent" | "send", agent: string, given: Api.Context | undefined): Call {
  if (otel === undefined) return UNTRACED;
  const { context, propagation, trace, SpanKind, SpanStatusCode } = otel;
  const parent = given ?? context.active();
  const span = trace.getTracer(SCOPE).startSpan(
    `${name} ${agent}`,
    {
      kind: name === "send" ? SpanKind.PRODUCER : SpanKind.CLIENT,
      attributes:
        name === "send"
          ? { "messaging.system": "nats", "messaging.operation.name": "send", "messaging.operation.type": "send" }
          : { "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent, "gen_ai.provider.name": "agentmesh" },
    },
    parent,
  );
  const headers: Record<string, string> = {};
  propagation.inject(trace.setSpan(parent, span), headers);
  const of = span.spanContext();
  if (headers["traceparent"] === undefined && trace.isSpanContextValid(of)) {
    // No propagator is set: the API alone knows the context, and its form is W3C's.
    headers["traceparent"] = `00-${of.traceId}-${of.spanId}-${of.traceFlags.toString(16).padStart(2, "0")}`;
    const state = of.traceState?.serialize();
    if (state) headers["tracestate"] = state;
  }
  return {
    headers,
    end(error) {
      if (error !== undefined) {
        // The code alone: a message may hold content.
        const type = error instanceof MeshError ? error.code : error instanceof Error ? error.name : "error";
        span.setAttribute("error.type", type);
        span.setStatus({ code: SpanStatusCode.ERROR, message: type });
      }
      span.end();
    },
  };
}
