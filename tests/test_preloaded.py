"""What a forked process of the tests is taken for."""

from __future__ import annotations

import json
import os
import socket

from preloaded import ForkedProcess, Forker


def test_a_process_whose_number_was_that_of_another_has_not_ended_with_it() -> None:
    asked, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    forker = object.__new__(Forker)
    forker._socket, forker.codes = asked, {}
    said: list[dict[str, int]] = [{"started": 7}, {"ended": 7, "code": 0}, {"started": 7}]
    with asked, answers, open(os.devnull, "wb") as out:

        def started(*until: dict[str, int]) -> ForkedProcess:
            for answer in until:
                answers.send(json.dumps(answer).encode())
            return forker.start([], {}, stdout=out)

        first = started(said[0])
        second = started(*said[1:])
        assert second.pid == first.pid
        assert second.poll() is None
        answers.send(json.dumps({"ended": 7, "code": 3}).encode())
        assert second.wait() == 3
