"""Control groups as containers have them: one for the services, and one for Lifeboat with the weight that the compose
file gives it. Between containers that weight decides who gets a processor; niceness tells only inside of one.
"""

import os
import re
import sys
from pathlib import Path

from .tools import ROOT

HOME = Path("/sys/fs/cgroup")
USUAL_SHARES = 1024


class Groups:
    """Moves this process, and what it starts, into the services' group until the block ends."""

    def __init__(self):
        shares = re.search(r"^ +cpu_shares: (\d+)$", (ROOT / "compose.override.yml").read_text(), re.MULTILINE)
        self.shares = int(shares[1]) if shares else USUAL_SHARES
        # Version 1 has a hierarchy of its own for each resource.
        self.home = HOME / "cpu" if (HOME / "cpu/cpu.shares").exists() else HOME
        name = f"lifeboat-bench-{os.getpid()}"
        self.services, self.own = self.home / f"{name}-services", self.home / f"{name}-lifeboat"

    def __enter__(self):
        try:
            if self.home == HOME:
                (HOME / "cgroup.subtree_control").write_text("+cpu")
            for group, shares in ((self.services, USUAL_SHARES), (self.own, self.shares)):
                group.mkdir()
                self.weigh(group, shares)
            enter(self.services)
        except OSError as error:
            self.__exit__()
            sys.exit(f"bench: no control groups can be made ({error}): run as root, where {HOME} is writable")
        return self

    def weigh(self, group, shares):
        if self.home != HOME:
            (group / "cpu.shares").write_text(str(shares))
        else:
            # As the engine's runtime converts them.
            (group / "cpu.weight").write_text(str(1 + (shares - 2) * 9999 // 262142))

    def inside(self, command):
        """The command, in Lifeboat's group."""
        return ["sh", "-c", 'echo $$ >"$0"; exec "$@"', self.own / "cgroup.procs", *command]

    def __exit__(self, *_):
        enter(self.home)
        for group in (self.services, self.own):
            if group.exists():
                # What still ends must not stay in it.
                for process in (group / "cgroup.procs").read_text().split():
                    enter(self.home, process)
                group.rmdir()


def enter(group, process=None):
    try:
        (group / "cgroup.procs").write_text(str(process or os.getpid()))
    except ProcessLookupError:
        # It has ended.
        pass
