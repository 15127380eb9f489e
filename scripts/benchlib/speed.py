"""Time of full and unchanged backups and of restores: paired runs, alternating, and the median of each pair's ratio.

Lifeboat encrypts, as restic does; tar and zstd do not. Lifeboat syncs what it stores and restores; tar and zstd do
not, and restic syncs only what it stores.
"""

import time
from statistics import median

from .data import SETTLE_SECONDS, Cluster, make_n8n, make_ollama
from .measure import GB, MB, need_space, say, tree_size
from .report import Targets, describe_machine, in_seconds, table
from .tools import is_encrypted, lifeboat, newest_restic, restic, versions, zstd

SCALE, MODEL_BYTES, FILES = 40, 200 * MB, 4000
# How many times as fast as each peer, for each phase.
TARGETS = {
    "full": {"zstd": 1.0, "restic": 2.0},
    "unchanged": {"restic": 3.0},
    "restore": {"zstd": 1.0, "restic": 1.5},
}


def speed(work, binary, options):
    need_space(work, int(options.size * 10 * GB))
    machine, data, program = describe_machine(work), work / "data", newest_restic()
    say("making the data")
    make_n8n(data / "n8n", max(1, round(FILES * options.size)))
    make_ollama(data / "ollama", int(MODEL_BYTES * options.size))
    with Cluster(data / "postgres", work / "socket") as cluster:
        cluster.fill(max(1, round(SCALE * options.size)))
        # Else the first one who asks the catalogs changes them: hint bits.
        cluster.sql("VACUUM")
        cluster.rest()
        tools = [lifeboat(work, binary, cluster, encrypted=True), zstd(work, 2), restic(work, program)]
        runs = alternate(tools, data, options.rounds)
        encrypted = is_encrypted(tools[0])
        told = versions(binary, [program, "zstd", "tar"], cluster)
        size = tree_size(data)
    targets = Targets()
    targets.is_true("encryption is on", encrypted)
    print(render(runs, tools, targets))
    print(f"\n- Medians of {options.rounds} alternating runs on {size / MB:.0f} MB in the page cache; in brackets CPU.")
    print(f"- Machine: {machine}.\n- Versions: " + ", ".join(f"{name} {version}" for name, version in told.items()))
    print(f"- Lifeboat's repository is {'' if encrypted else 'not '}encrypted.")
    return {"machine": machine, "versions": told, "data_bytes": size, "runs": runs, **targets.report()}


def alternate(tools, data, rounds):
    """Every round: a full backup into an empty repository, an unchanged one, a restore; each of every tool in turn."""
    runs = {phase: {tool.key: [] for tool in tools} for phase in TARGETS}
    for number in range(rounds):
        # Who comes first changes, so that no tool always follows the same one.
        order = tools[number % len(tools) :] + tools[: number % len(tools)]
        for tool in order:
            tool.begin()
            time.sleep(SETTLE_SECONDS)
            runs["full"][tool.key].append(tool.measure_backup(data))
        for tool in order:
            if tool.key in ("lifeboat", *TARGETS["unchanged"]):
                runs["unchanged"][tool.key].append(tool.measure_backup(data))
        for tool in order:
            runs["restore"][tool.key].append(tool.measure_restore(data))
    return runs


def render(runs, tools, targets):
    rows, names = [], {tool.key: tool.name for tool in tools}
    for phase, peers in TARGETS.items():
        own, title = runs[phase]["lifeboat"], phase
        for peer, limit in peers.items():
            theirs = runs[phase][peer]
            ratio = median(b["wall"] / a["wall"] for a, b in zip(own, theirs, strict=True))
            verdict = targets.at_least(f"{phase}, times as fast as {names[peer]}", round(ratio, 2), limit)
            rows.append([title, shown(own), names[peer], shown(theirs), f"{ratio:.2f} ×", verdict])
            title = ""
    return table(["", "Lifeboat", "peer", "its time", "Lifeboat is as fast", "target"], rows)


def shown(runs):
    wall, cpu = (median(run[key] for run in runs) for key in ("wall", "cpu"))
    return f"{in_seconds(wall)} ({in_seconds(cpu)})"
