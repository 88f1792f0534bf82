"""The whole mesh as processes on a cluster of three NATS servers, while things are killed, stopped, restarted and cut off.

    schedule.py  what goes wrong, on what, when and for how long: a function of the seed
    wires.py     a process between everybody and the servers, which can cut each of them off
    cast.py      servers, supervisors, nodes: processes that are kept running
    stage.py     all of them together, and the clients
    storm.py     carries the schedule out
    tape.py      records all that a stream ever stores
    records.py   the tapes of a run, and the evidence on them
    calm.py      when everything is done
    run.py       one seed, from its stage to its verdict
    report.py    what is printed and saved of it

The clients' work and the agents are the simulation's (tests/sim), the verdict is tests/judge's.
"""
