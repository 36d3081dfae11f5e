"""Run a program that cannot outlive its parent: ``python guard.py PARENT_PID SIGNAL UID GID PROGRAM ARGS...``.

A script of its own, started without site-packages, because its settings must be made between fork and exec, where
the parent's Python (its threads, its locks) is not safe to run. The order matters: the kernel forgets the death
signal when a process changes its user.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, death_signal: int, uid: int, gid: int, argv: list[str]) -> None:
    if os.geteuid() == 0 and uid != 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    try:
        os.execv(argv[0], argv)  # noqa: S606 - to run exactly this program is the purpose
    except OSError as error:
        sys.exit(f"cannot run {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
