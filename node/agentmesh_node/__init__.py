"""Processes that host: the agent node, the supervisor, the backends.

Where to begin, by question; each module says in its first lines what it is for:

- How does a process start and end? `commands`, `service`, `process`, `workers`, `load`, `embedded`.
- What does a node do with an agent that is placed on it? `host`, `resident`, `restless`, `claiming`, `owner`, `resting`,
  `draining`.
- How does a turn run? `owner` feeds the pure machine of `agentmesh.turn`; `turning`, `runner` (the user's code), `stepping`,
  `stepkeeper`, `metering`, `live`; `loop` and `tools` for backends whose tools the mesh runs.
- How does what was decided happen? `appending` (the record), `performer` and `deeds` (its effects).
- Who places agents and notices deaths? `supervisor`, `leadership`, `census`, `placing`, `pinger`, `latecomers`, `children`; the
  decisions themselves are `agentmesh.planner`'s.
- What is heard of all this? `events`, `logs`, `tracing`, `counters`, `health`, `report`.
"""
