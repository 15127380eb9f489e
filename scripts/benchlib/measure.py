"""Runs programs and measures them: time, processor, memory, bytes read and bytes stored."""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

MB = 1_000_000
GB = 1_000_000_000


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run_measured(pipeline, log, cwd, env, output=None):
    """Runs programs joined by pipes; returns wall and CPU seconds, bytes read and the largest one's peak memory."""
    running = []
    with open(log, "wb") as errors, open(output or log.with_suffix(".out"), "wb") as out:
        began = time.monotonic()
        try:
            for at, command in enumerate(pipeline):
                last = at == len(pipeline) - 1
                process = subprocess.Popen(
                    [str(word) for word in command],
                    stdin=running[-1].stdout if running else subprocess.DEVNULL,
                    stdout=out if last else subprocess.PIPE,
                    stderr=errors,
                    cwd=cwd,
                    env=env,
                )
                if running:
                    running[-1].stdout.close()
                running.append(process)
            cpu, peak, read = 0.0, 0, 0
            for process in running:
                read += read_by(process.pid)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu += usage.ru_utime + usage.ru_stime
                peak = max(peak, usage.ru_maxrss * 1024)
            wall = time.monotonic() - began
        finally:
            for process in running:
                if process.returncode is None:
                    process.kill()
                    process.wait()
    if any(process.returncode for process in running):
        shown = " | ".join(" ".join(map(str, command)) for command in pipeline)
        sys.exit(f"bench: {shown} failed:\n{log.read_text(errors='replace')[-2000:]}")
    # A child starts with the peak of the process it is forked from: what is not above ours is not known better.
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = {"wall": wall, "cpu": cpu, "read_calls_bytes": read}
    return measured | {"peak_bytes": max(peak, floor), "peak_is_bound": peak <= floor}


def read_by(pid):
    """Waits until a process ends and tells the bytes that its reads brought, from disk or not."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    counters = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in counters if line.startswith("rchar:"))


def family_cpu(pid):
    """The CPU seconds of a process, of its living descendants, and of the ended ones that one of them waited for."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The program's name may hold anything, in brackets.
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        number = int(path.parent.name)
        parents[number], ticks[number] = int(fields[1]), sum(map(int, fields[11:15]))
    family, found = {pid}, {pid}
    while found:
        found = {child for child, parent in parents.items() if parent in found}
        family |= found
    return sum(ticks.get(member, 0) for member in family) / os.sysconf("SC_CLK_TCK")


def same_start(data):
    """Every run finds its data in the page cache and nothing waiting to be written."""
    os.sync()
    buffer = bytearray(1 << 20)
    for path in files_of(data):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def set_aside(directory):
    """Gives the space of a directory's files back and moves it away; it is removed with the benchmark's directory.

    ext4 looks at every inode that was freed within the last minutes before it gives out another of the same group:
    who creates files after a tree of thousands was removed pays for that, seconds of it.
    """
    if not directory.exists():
        return
    for path in files_of(directory):
        os.truncate(path, 0)
    aside = directory.with_name("aside")
    aside.mkdir(exist_ok=True)
    directory.rename(aside / str(len(os.listdir(aside))))


def files_of(directory):
    for parent, _, names in os.walk(directory):
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def tree_size(directory):
    return sum(path.stat().st_size for path in files_of(directory))


def need_space(directory, needed):
    free = shutil.disk_usage(directory).free
    if free < needed:
        sys.exit(f"bench: {needed / GB:.1f} GB are needed below {directory}, {free / GB:.1f} GB are free; see --dir")
