"""What backups cost a busy PostgreSQL server: pgbench's throughput and latency with `lifeboat backup` in a loop.

A window without backups and one with them are a pair, in a random order. Every window begins just after a checkpoint,
because a backup asks for one, and each pair has a new repository with a full backup in it, so the loop makes what a
schedule makes. A third window has only the checkpoints, as often as the backups ask for them: what it loses no copy
could save. Once the clients ask as fast as they can, and once at half of that: there the server has processor to
spare, and latency tells.

Server and clients are in one control group and Lifeboat in another, with the weights of their containers.
"""

import random
import threading
import time
from statistics import median

from .data import SEED, Cluster
from .groups import Groups
from .measure import GB, MB, need_space, run_measured, say
from .report import Targets, describe_machine, in_seconds, table
from .tools import is_encrypted, lifeboat, versions

SCALE, CLIENTS, SECONDS, WARM_UP_SECONDS = 30, 4, 20, 5
LOSS_LIMIT = 0.10
KINDS = ["without", "with", "checkpoints"]
# A server as people run it: what it commits is on the disk, and nothing comes in between that one window has alone.
SETTINGS = "fsync = on\nmax_wal_size = 8GB\n"
FIGURES = {
    "rate": ("transactions a second", lambda value: f"{value:.0f}"),
    "mean": ("mean latency", lambda value: f"{value * 1000:.2f} ms"),
    "p99": ("99th percentile of latency", lambda value: f"{value * 1000:.2f} ms"),
}


def cost(work, binary, options):
    scale, seconds = max(1, round(SCALE * options.size)), max(3, round(SECONDS * options.size))
    need_space(work, int(scale * 16 * MB * 8 + 12 * GB))
    machine, data, targets = describe_machine(work), work / "data", Targets()
    data.mkdir()
    with Groups() as groups, Cluster(data / "postgres", work / "socket", SETTINGS) as cluster:
        cluster.fill(scale)
        tool = lifeboat(work, binary, cluster, encrypted=True)
        command = groups.inside(tool.backup(0)[0])
        tool.backup = lambda _: [command]
        begin(cluster)
        window(cluster, WARM_UP_SECONDS)
        begin(cluster)
        capacity = window(cluster, seconds)["rate"]
        loads = {"unlimited": None, "half of that": max(1, round(capacity / 2))}
        runs = {load: pairs(cluster, tool, seconds, rate, options.rounds) for load, rate in loads.items()}
        encrypted = is_encrypted(tool)
        told = versions(binary, [], cluster)
    targets.is_true("encryption is on", encrypted)
    print(render(runs, loads, targets))
    backups = [backup for found in runs.values() for pair in found for backup in pair["with"]["backups"]]
    print(
        f"\n- Medians of {options.rounds} pairs of windows of {seconds} s, each in a random order, and of the pairs'"
        f" ratios. TPC-B at scale {scale}, {CLIENTS} clients on the same machine."
    )
    wall, cpu = (median(backup[key] for backup in backups) for key in ("wall", "cpu"))
    print(
        f"- {len(backups)} encrypted backups, one after the other, {in_seconds(wall)} and {in_seconds(cpu)} of CPU each"
        " in the median: a schedule makes one where this makes many, and each begins with a checkpoint."
    )
    print(f"- Control groups as compose makes them: {groups.shares} CPU shares for Lifeboat, 1024 for the server.")
    print(f"- Machine: {machine}.\n- Versions: " + ", ".join(f"{name} {version}" for name, version in told.items()))
    return {"machine": machine, "versions": told, "capacity": capacity, "runs": runs, **targets.report()}


def pairs(cluster, tool, seconds, rate, rounds):
    rng, found = random.Random(SEED), []
    # How often the loop asks for a checkpoint under this load.
    warm_up = window_with_backups(cluster, tool, WARM_UP_SECONDS, rate)
    period = median(made["wall"] for made in warm_up["backups"])
    for number in range(rounds):
        tool.begin()
        backup(tool)
        pair = {}
        for kind in rng.sample(KINDS, len(KINDS)):
            begin(cluster)
            if kind == "with":
                pair[kind] = window_with_backups(cluster, tool, seconds, rate)
            elif kind == "checkpoints":
                with Loop(lambda: checkpoint(cluster, period)):
                    pair[kind] = window(cluster, seconds, rate)
            else:
                pair[kind] = window(cluster, seconds, rate)
        found.append(pair)
        ratio = pair["with"]["rate"] / pair["without"]["rate"]
        load = f"{rate} a second" if rate else "unlimited"
        say(f"pair {number + 1} of {rounds}, {load}: {ratio:.2f} × the throughput")
    return found


def window_with_backups(cluster, tool, seconds, rate):
    with Loop(lambda: backup(tool)) as loop:
        measured = window(cluster, seconds, rate)
    return measured | {"backups": loop.done}


def backup(tool):
    return run_measured(tool.backup(0), tool.home / "log", tool.home, tool.env)


def checkpoint(cluster, period):
    """And waits until that many seconds have passed."""
    until = time.monotonic() + period
    cluster.sql("CHECKPOINT")
    time.sleep(max(0, until - time.monotonic()))


def begin(cluster):
    """Every window finds small tables small, and a checkpoint just made."""
    cluster.sql("VACUUM pgbench_branches, pgbench_tellers", "TRUNCATE pgbench_history", "CHECKPOINT")


def window(cluster, seconds, rate=None):
    """Runs pgbench; tells its transactions a second, and how long each took from the instant it was due."""
    prefix = cluster.socket / "window"
    words = ["--no-vacuum", "--client", CLIENTS, "--jobs", 2, "--time", seconds, "--log", "--log-prefix", prefix]
    cluster.run("pgbench", *words, *(["--rate", rate] if rate else []), "postgres")
    taken = []
    for log in cluster.socket.glob("window.*"):
        # Client, number, microseconds, script, and when.
        taken += [int(line.split()[2]) / 1_000_000 for line in log.read_text().splitlines()]
        log.unlink()
    taken.sort()
    return {"rate": len(taken) / seconds, "mean": sum(taken) / len(taken), "p99": taken[len(taken) * 99 // 100]}


class Loop:
    """Does something again and again until the block ends, and lets the last time end; `done` is what it gave."""

    def __init__(self, action):
        self.action, self.done, self.failure = action, [], None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        # In a thread, an exit ends nothing but the thread.
        if self.failure:
            raise self.failure

    def run(self):
        try:
            while not self.over.is_set():
                self.done.append(self.action())
        except (Exception, SystemExit) as failure:
            self.failure = failure


def render(runs, loads, targets):
    rows = []
    for load, found in runs.items():
        title = load if not loads[load] else f"{load}: {loads[load]} a second"
        for key, (label, shown) in FIGURES.items():
            cells = [shown(median(pair[kind][key] for pair in found)) for kind in KINDS]
            ratio = median(pair["with"][key] / pair["without"][key] for pair in found)
            verdict = ""
            if load == "unlimited" and key == "rate":
                verdict = targets.at_most("throughput lost while backups run", round(1 - ratio, 3), LOSS_LIMIT)
            rows.append([title, label, *cells, f"{ratio:.2f}", verdict])
            title = ""
    heads = ["clients ask", "", "no backup", "backups in a loop", "only their checkpoints", "backups ÷ none", "target"]
    return table(heads, rows, texts=2)
