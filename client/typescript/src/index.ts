/**
 * Talk to the agents of a mesh on NATS.
 *
 * @packageDocumentation
 */
export { connect, type ConnectOptions } from "./connect.js";
export * from "./errors.js";
export { EventReader, type LiveEvent, type Retry } from "./events.js";
export { Mesh, type MeshOptions, TIMEOUTS } from "./mesh.js";
export { BUFFER, Turn } from "./turn.js";
export type * from "./types.js";
