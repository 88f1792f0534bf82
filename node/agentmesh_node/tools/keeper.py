"""Runs a command, and kills the processes that it leaves behind; where it is told the node's pid, it ends with the node.

    python -I -S keeper.py [--node PID] <command> <arguments>...

When Codex ends it ends the commands that it runs, except one that it is just starting: that goes on without a parent. On Linux
the kernel makes such processes children of this program, which kills them. It needs nothing of the node, so this works also if
the node was killed: Codex ends with the pipe that the node held, and this program after Codex. An MCP server may take no notice
of that pipe, so this program asks the kernel to be told when its parent ends, and then kills it. It imports only what it needs,
because it runs before every turn.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NODE_ENDED = signal.SIGUSR2


def main() -> None:
    import ctypes  # noqa: PLC0415 - as all that is not needed to be imported as a module

    command = sys.argv[1:]
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if command[0] == "--node":
        node, command = int(command[1]), command[2:]
        signal.signal(NODE_ENDED, _end_with_the_node)
        prctl(PR_SET_PDEATHSIG, NODE_ENDED, 0, 0, 0)
        if os.getppid() != node:  # it ended before the kernel was asked
            sys.exit(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)  # signals that come before they can be passed on wait
    try:
        child = os.posix_spawn(command[0], command, os.environ, setsigmask=())
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error}")
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # only the command may hold the pipes: they must end when it does
        os.dup2(silence, stream)
    end = -1
    while True:
        gone, status = os.wait()
        if gone == child:
            end = os.waitstatus_to_exitcode(status)
            break
    for number in HANDED_ON:
        signal.signal(number, signal.SIG_IGN)
    _kill_all()
    if end < 0:
        if -end != signal.SIGKILL:
            signal.signal(-end, signal.SIG_DFL)
        os.kill(os.getpid(), -end)
    sys.exit(end)


def _end_with_the_node(*_: object) -> None:
    _kill_all()
    os._exit(1)


def _kill_all() -> None:
    """Kill all descendants. A child of one that dies becomes a child of this process, and is seen next."""
    while True:
        with open("/proc/thread-self/children") as children:
            for child in children.read().split():
                os.kill(int(child), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
