"""The whole mesh in one deterministic event loop: real shells, an in-memory NATS, a virtual clock, faults under a seed.

    loop.py      virtual time, and processes that can be frozen and killed
    store.py     a JetStream stream
    server.py    the in-memory NATS: core messages, the JetStream API
    net.py       connections and the `Transport` over them
    agents.py    the agents of the workload
    world.py     nodes, supervisors and clients, put together
    faults.py    what goes wrong, and when
    workload.py  what clients do
    checker.py   what a run leaves behind for the judge (tests/judge)
    run.py       one seed, from its world to its verdict
    loss.py      instead of faults: a store that is put back to an earlier state
    strangers.py instead of faults: messages that are not the mesh's, and records that nobody can read

A seed chooses its climate (how long, which kinds of fault, how large a lane, a message and a state may be, how wrong the clocks
are), the schedule of its faults, and all that clients do. `python -m tests.sim --seed N --seeds M` runs seeds N to N+M-1 on all
cores; one core runs some 300 in a minute. A failing seed replays step by step: `make sim SEED=N ARGS=--trace`.
"""
