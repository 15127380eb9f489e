"""What list, retention and an unchanged backup cost when there are many backups already."""

import time
from statistics import median

from . import changes
from .data import SETTLE_SECONDS
from .measure import GB, need_space, run_measured, say
from .report import Targets, describe_machine, in_bytes, in_seconds, table
from .tools import lifeboat

COUNTS = (10, 100, 1000)
FILES = 300
REPEATS = 5
# The cost may not follow the number of backups: with a hundred times as many, at most this many times the first.
BACKUP_LIMIT = 2.0
# Listing reads something of every backup: this much of each, at the most.
LIST_BYTES_LIMIT, LIST_SECONDS_LIMIT = 16_384, 0.002


def history(work, binary, options):
    need_space(work, 2 * GB)
    machine, targets, data = describe_machine(work), Targets(), work / "data"
    changes.make_small_files(data / "volume", FILES)
    keep_all = {"BACKUP_KEEP_LAST": 100_000}
    tool = lifeboat(work, binary, encrypted=True, env=keep_all)
    counts = sorted({max(2, round(count * options.size)) for count in COUNTS})
    time.sleep(SETTLE_SECONDS)
    made, curve = 0, {}
    for count in counts:
        say(f"up to {count} backups")
        while made < count - REPEATS - 1:
            file = data / f"volume/d00000/f{made % 100:07}.json"
            file.write_bytes(file.read_bytes() + b" ")
            run(tool, data, "backup", "--json")
            made += 1
        # The last change has been backed up and is old enough to be trusted.
        time.sleep(SETTLE_SECONDS)
        run(tool, data, "backup", "--json")
        backups = [run(tool, data, "backup", "--json") for _ in range(REPEATS)]
        made += REPEATS + 1
        curve[made] = {
            "unchanged backup": cost(backups),
            "list": cost([run(tool, data, "list", "--json") for _ in range(REPEATS)]),
            "retention (`prune --dry-run`)": cost(retention(tool, data)),
        }
    judge(curve, targets)
    rows = [
        [f"{made} backups: {name}", in_seconds(value["wall"]), in_bytes(value["read"])] if value else
        [f"{made} backups: {name}", "failed", "–"]
        for made, values in curve.items()
        for name, value in values.items()
    ]
    print(table(["", "time", "bytes read"], rows))
    for check in targets.checked:
        print(f"- {check['name']}: {check['value']}, target {check['limit']}: {'met' if check['met'] else '**missed**'}")
    print(f"- Medians of {REPEATS} runs; bytes that all reads brought, from disk or not.\n- Machine: {machine}.")
    return {"machine": machine, "curve": curve, **targets.report()}


def run(tool, data, *words):
    return run_measured([[tool.backup(0)[0][0], *words]], tool.home / "log", data, tool.env)


def retention(tool, data):
    try:
        return [run(tool, data, "prune", "--dry-run") for _ in range(REPEATS)]
    except SystemExit as failure:
        say(str(failure))
        return []


def cost(runs):
    if runs:
        return {"wall": median(run["wall"] for run in runs), "read": median(run["read_calls_bytes"] for run in runs)}
    return None


def judge(curve, targets):
    (few, first), (many, last) = min(curve.items()), max(curve.items())
    for name in first:
        before, after = first[name], last[name]
        if not (before and after):
            targets.is_true(f"{name} works", False)
        elif name == "unchanged backup":
            for key in ("wall", "read"):
                label = f"{name}, {key} at {many} ÷ at {few}"
                targets.at_most(label, round(after[key] / before[key], 2), BACKUP_LIMIT)
        else:
            for key, limit in (("wall", LIST_SECONDS_LIMIT), ("read", LIST_BYTES_LIMIT)):
                marginal = (after[key] - before[key]) / max(1, many - few)
                targets.at_most(f"{name}, {key} for each further backup", round(marginal, 6), limit)
