import { errors } from "@nats-io/nats-core";
import type { NodeConnectionOptions } from "@nats-io/transport-node";
import { MeshError, NotPermittedError, UnavailableError } from "./errors.js";
import { Mesh, type MeshOptions } from "./mesh.js";

/** All that the NATS client takes (`servers`, `authenticator`, `tls`, ...), and the mesh's settings. */
export type ConnectOptions = NodeConnectionOptions & MeshOptions;

/** A client with a connection of its own, which `close` ends, too. */
class OwnMesh extends Mesh {
  override async close(): Promise<void> {
    await super.close();
    if (!this.connection.isClosed()) await this.connection.drain().catch(() => this.connection.close());
  }
}

/**
 * Connect to a NATS server, and reconnect for as long as the client lasts.
 *
 * @throws {@link UnavailableError}: no server answers; {@link NotPermittedError}: it refuses the credentials.
 */
export async function connect(options: ConnectOptions = {}): Promise<Mesh> {
  const { root, ...given } = options;
  const { connect: dial } = await import("@nats-io/transport-node");
  const settings: NodeConnectionOptions = { name: "agentmesh", maxReconnectAttempts: -1, reconnectTimeWait: 250, reconnectJitter: 100, ...given };
  try {
    const mesh: MeshOptions = { ...(root === undefined ? {} : { root }), ...(given.inboxPrefix === undefined ? {} : { inboxPrefix: given.inboxPrefix }) };
    return new OwnMesh(await dial(settings), mesh);
  } catch (error) {
    if (error instanceof MeshError) throw error;
    const text = error instanceof Error ? error.message : String(error);
    if (error instanceof errors.AuthorizationError) {
      throw new NotPermittedError("not_permitted", `the NATS server refuses this user: ${text}`, {}, { cause: error });
    }
    throw new UnavailableError("unavailable", `no connection to a NATS server: ${text}`, {}, { cause: error });
  }
}
