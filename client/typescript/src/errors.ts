/**
 * Every error of the mesh is a {@link MeshError} with a stable `code`: the wire's, or one of the client's own.
 *
 * Families say what has happened to the request: a {@link RequestError} was refused and nothing happened, a {@link TurnError}
 * was accepted and ended without an answer, an {@link InfrastructureError} could not be carried out now.
 */

/** Codes that this version knows. A newer mesh may send others, so `MeshError.code` is any string. */
export type ErrorCode = keyof typeof CLASSES | "ask_timeout";

/** What an error says besides: `ref` where it is known, `size` and `limit` of `too_large`, and so on. */
export type Details = Readonly<Record<string, unknown>>;

/** An error as it travels. */
export interface WireError {
  code: string;
  message?: string;
  details?: Record<string, unknown>;
}

/** Base of all errors of the mesh. */
export class MeshError extends Error {
  /** Stable, for programs. */
  readonly code: ErrorCode | (string & {});
  readonly details: Details;

  constructor(code: string, message: string, details: Details = {}, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
    this.details = details;
  }

  /** The request that the error is about, where it is known: `poll` takes it. */
  get ref(): string | undefined {
    const { ref } = this.details;
    return typeof ref === "string" && ref !== "" ? ref : undefined;
  }
}

/** The request was refused; nothing happened. */
export class RequestError extends MeshError {}
/** The request was accepted and ended without an answer. */
export class TurnError extends MeshError {}
/** The mesh cannot do it now. */
export class InfrastructureError extends MeshError {}

/** The request is malformed: mend it. */
export class BadRequestError extends RequestError {}
/** The message exceeds a limit; `details` has `size` and `limit`, in bytes. */
export class TooLargeError extends RequestError {}
/** No agent of that name exists. */
export class NotFoundError extends RequestError {}
/** The agent's mailbox is at its bound: send again later. */
export class MailboxFullError extends RequestError {}
/** This user may not do that, or the request's key is missing. */
export class NotPermittedError extends RequestError {}

/** The turn ran longer than the agent's watchdog allows. */
export class TurnTimeoutError extends TurnError {}
/** The turn was interrupted. */
export class InterruptedError extends TurnError {}
/** The request's deadline passed. */
export class ExpiredError extends TurnError {}
/** The agent was stopped before it answered. */
export class StoppedError extends TurnError {}
/** The waiting prompt was cancelled. */
export class CancelledError extends TurnError {}
/** The model's backend refused or failed the turn. */
export class BackendError extends TurnError {}
/** The request's or the agent's budget is spent. */
export class BudgetExceededError extends TurnError {}
/** The agent has failed: `resume` may revive it. */
export class AgentFailedError extends TurnError {}

/** No server, no owner or no leader: try again. With `details.uncertain` the request may have been carried out. */
export class UnavailableError extends InfrastructureError {}
/** The caller's own time ended. The turn goes on: poll `ref`, where it is known, or ask again with the same key. */
export class AskTimeoutError extends InfrastructureError {}

type MeshErrorClass = new (code: string, message: string, details?: Details, options?: ErrorOptions) => MeshError;

const CLASSES = {
  bad_request: BadRequestError,
  too_large: TooLargeError,
  not_found: NotFoundError,
  already_started: RequestError,
  conflict: RequestError,
  mailbox_full: MailboxFullError,
  not_permitted: NotPermittedError,
  not_in_callback: RequestError,
  invalid_agent: RequestError,
  timeout: TurnTimeoutError,
  interrupted: InterruptedError,
  task_crashed: TurnError,
  no_terminal_event: TurnError,
  backend_error: BackendError,
  pre_turn_skipped: TurnError,
  pre_turn_halted: TurnError,
  pre_turn_invalid: TurnError,
  bad_return: TurnError,
  bad_state: TurnError,
  expired: ExpiredError,
  stopped: StoppedError,
  failed: AgentFailedError,
  dead_letter: TurnError,
  cancelled: CancelledError,
  cycle: TurnError,
  budget_exceeded: BudgetExceededError,
  bad_answer: TurnError,
  unavailable: UnavailableError,
  no_leader: UnavailableError,
  store_full: UnavailableError,
  stream_missing: UnavailableError,
  unreadable_record: UnavailableError,
  busy: InfrastructureError,
  tls_failed: InfrastructureError,
  wrong_domain: InfrastructureError,
  store_lost: InfrastructureError,
} satisfies Record<string, MeshErrorClass>;

/** The error for what the wire says; `ref` goes into its details. */
export function errorFrom(wire: WireError, ref?: string): MeshError {
  const known: MeshErrorClass = Object.hasOwn(CLASSES, wire.code) ? CLASSES[wire.code as keyof typeof CLASSES] : MeshError;
  const details = { ...wire.details, ...(ref ? { ref } : {}) };
  return new known(wire.code, wire.message ?? wire.code, details);
}
