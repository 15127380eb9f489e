"""What the modes print: tables, and which targets are met."""

import os
import platform
import subprocess

from .measure import MB


class Targets:
    """The targets of one mode, each met or missed."""

    def __init__(self):
        self.checked = []

    def at_most(self, name, value, limit):
        return self._check(name, value, f"≤ {limit:g}", value <= limit)

    def at_least(self, name, value, limit):
        return self._check(name, value, f"≥ {limit:g}", value >= limit)

    def is_true(self, name, value):
        return self._check(name, value, "yes", bool(value))

    def _check(self, name, value, limit, met):
        self.checked.append({"name": name, "value": value, "limit": limit, "met": met})
        return f"{limit}: {'met' if met else '**missed**'}"

    def missed(self):
        return [check["name"] for check in self.checked if not check["met"]]

    def report(self):
        return {"targets": self.checked, "missed": self.missed()}


def table(heads, rows, texts=1):
    """A Markdown table; the first columns are text, the others are figures."""
    lines = [heads, ["---"] * texts + ["--:"] * (len(heads) - texts), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def in_bytes(count):
    if count >= MB / 10:
        return f"{count / MB:.1f} MB"
    return f"{count / 1000:.1f} KB"


def in_seconds(seconds):
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def describe_machine(directory):
    cpu = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    total = next(int(line.split()[1]) * 1024 for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    filesystem = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True)
    text = f"{len(os.sched_getaffinity(0))} cores ({cpu[0] if cpu else platform.machine()}), {total / 2**30:.0f} GiB"
    text += f", Linux {platform.release()}, file system {filesystem.stdout.strip()}"
    return text + f"; load average {os.getloadavg()[0]:.1f} at the start"
