"""Each rule of docs/architecture.md as a test of its name: which attack it withstands.

The attacks that the design was put to on paper:

    a frozen node that wakes and reads the journal before it
      learns that its placement is gone                         test_attacks (and one that appends)
    a frozen former owner whose agent fails to begin            test_attacks
    an agent with a self-chained prompt and empty lanes         test_attacks
    stop while the outcome of the last turn is still open       test_attacks
    a purge, a first activation, after the name was reused      test_attacks
    an older long timer behind a newer short one                test_attacks
    start and stop repeated after the next life began           test_attacks
    a snapshot written while effects are open                   test_attacks
    a full mailbox at one target                                test_attacks
    the same Nats-Msg-Id sent to two agents                     test_attacks
    an answer that arrives while earlier events are deferred    test_attacks
    a restarted process under the same node id                  test_attacks, live/test_kills
    a loop that hangs                                           test_limits, live/test_supervision
    a reply subject of 5,000 characters                         test_limits
    a body at the payload limit that must become a dead letter  test_limits

The record and its owner (docs/architecture.md#one-turn-one-record and what follows):

    Fence; Is the newest record mine?       test_replicas, mesh/edge/test_journal
    a store older than what was committed   test_sentences, mesh/edge/test_journal, `python -m tests.sim --loss`
    Who may act                             test_ownership, live/test_kills, sim
    Effects: order per target               test_attacks, live/test_between_agents
      mail: ids, origins, windows           test_attacks, test_sentences, mesh/turn/test_mesh, sim
      start and stop: `by`, `applied`       test_attacks, test_sentences, client/test_lifecycle
      timers                                test_attacks, mesh/turn/test_timers, live/test_timers
      outcomes                              test_attacks, sim
      giving up; six days; lives            test_sentences, mesh/turn/test_mesh
      1,000 open effects                    mesh/turn/test_mesh
    snapshots, blobs                        test_attacks, test_sentences, mesh/turn/test_mesh, mesh/edge/test_blobs
    Rest                                    test_sentences, live/test_sleep
    The end; tombstones; late mail          test_sentences, test_ownership, mesh/turn/test_stop, sim/test_findings
    Codec                                   compat/test_records

Mail (docs/architecture.md#mail-and-lanes, docs/architecture.md#poison):

    lanes, republished copies, gaps         test_sentences, mesh/edge/test_streams, sim
    self-check                              test_sentences
    lazy purge; the window; half a lane     test_sentences, live/test_mailbox
    a full lane refuses at once             live/test_mailbox, mesh/edge/test_publish
    Poison                                  mesh/turn/test_poison, live/test_supervision, live/test_mailbox
"""
