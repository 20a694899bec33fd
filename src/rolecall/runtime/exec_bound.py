"""``python exec_bound.py [--gate] PARENT_PID COMMAND …`` becomes COMMAND, killed with the process that started it.

The parent-death signal outlives ``exec``, so engines of any kind are covered, with no thread-unsafe code between fork
and exec in the proxy itself. ``PARENT_PID`` 0 binds it to nobody. With ``--gate`` it waits for a line on its standard
input and ends if there is none: an engine does not begin before it is written down, even if its parent dies just then.
It imports nothing of rolecall: every engine's start passes through here.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the signal, make sure that the parent is still there, wait at the gate, and become the command."""
    words = sys.argv[1:]
    has_gate = words[0] == "--gate"
    parent, command = int(words[has_gate]), words[has_gate + 1 :]
    if parent:
        bind(parent)
    if has_gate:
        wait_at_gate()
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.exit(127)


def bind(parent: int) -> None:
    """Have this process killed with its parent; end it if the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the signal was set
        os._exit(1)


def wait_at_gate() -> None:
    """Wait for a byte on the standard input, which is then empty; end without one."""
    if not os.read(0, 1):
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


if __name__ == "__main__":
    main()
