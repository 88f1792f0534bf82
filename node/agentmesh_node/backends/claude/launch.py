"""Executes a command in a process that does not outlive the node.

    python -I -S launch.py <pid of the node> <command> <arguments>...

A node that is killed cannot end its children. On Linux the kernel can: this program asks for SIGTERM when its parent ends, and
that request survives `exec`. On other systems the child ends when it next reads from or writes to the pipes that its node held.
It imports only what it needs, because it runs before every turn.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - not needed on other systems

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # the node ended before the kernel was asked
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
