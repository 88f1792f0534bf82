"""Processes that host: the agent node, the supervisor, the backends.

The rooms, from the street door down. A room imports from those below it, never from those above; import-linter holds that.

- `cli`: the verbs `up`, `node`, `supervisor`.
- `process`: one process: brought up, signalled, watched, ended.
- `host`: one node: which agents are placed here, who has work, hand-over.
- `owner`: one agent, owned: mail in, one record out, effects done. It feeds the pure machine of `agentmesh.turn`.
- `turns`: one turn of user code: callbacks, the prompt task, steps, budget.
- `supervisor`: one supervisor: which nodes live, who leads, where agents go. The decisions themselves are `agentmesh.planner`'s.
- `backends`: what answers a prompt.
- `tools`: what a model may call, and the loop that lets it.
- `user_code`: how any function of a user is run: on which thread, how long, and named when it blocks.
- `telemetry`: what is heard of it all: facts, logs, spans, metrics.

A file beside the rooms is used by two of them or more; a file in a room by that room and those above it.
"""
