"""What many nights of small change do: to the time of a restore, to metadata, and to what is stored."""

import random
from statistics import median

from . import changes
from .data import SEED, Cluster, make_n8n
from .measure import GB, MB, files_of, need_space, run_measured, say, tree_size
from .report import Targets, describe_machine, in_bytes, in_seconds, table
from .tools import lifeboat

NIGHTS = 100
SCALE, FILES, VECTOR_BYTES, DIMENSIONS = 20, 2000, 64 * MB, 768
TRANSACTIONS, CHANGED_FILES, CHANGED_VECTORS = 500, 10, 0.001
KEPT = 7
FIGURES = ("wall", "cpu", "read_calls_bytes")
RESTORE_LIMIT, METADATA_LIMIT, STORED_LIMIT = 1.5, 1.5, 1.5


def nights(work, binary, options):
    need_space(work, int(options.size * 8 * GB) + GB)
    machine, targets, data = describe_machine(work), Targets(), work / "old/data"
    count = max(2, round(NIGHTS * options.size))
    make_n8n(data / "n8n", round(FILES * options.size) or 1)
    vectors = data / "volume/vectors.bin"
    vectors.parent.mkdir()
    changes.make_vectors(vectors, int(VECTOR_BYTES * options.size), DIMENSIONS)
    work.joinpath("old").chmod(0o755)
    with Cluster(data / "postgres", work / "old/socket") as cluster:
        cluster.fill(max(1, round(SCALE * options.size)))
        cluster.rest()
        keep_all = {"BACKUP_KEEP_LAST": 10 * count}
        old = lifeboat(work / "old", binary, cluster, encrypted=True, env=keep_all)
        told = [night(old, data, cluster, vectors, number, count) for number in range(count + 1)]
        unchanged = old.measure_backup(data)["stored_bytes"]
        fresh = fresh_full(work, binary, cluster, old, data)
        restores = alternate([old, fresh], data, options.rounds)
        all_kept = stored(old)
        old.env["BACKUP_KEEP_LAST"] = str(KEPT)
        old.measure_backup(data)
        pruned, refused = prune(old, binary)
        after = alternate([old, fresh], data, options.rounds)
        live = stored(fresh)
    rows = [
        restore_row("restore after all nights", "restore after nights ÷ fresh", restores, targets),
        restore_row("restore after retention and prune", "restore after prune ÷ fresh", after, targets),
    ]
    early, late = (median(n["metadata"] for n in part) for part in (told[1 : count // 4 + 2], told[-(count // 4 + 1) :]))
    verdict = targets.at_most("metadata of a night, last quarter ÷ first", round(late / early, 2), METADATA_LIMIT)
    rows.append(["metadata of a night (index, ranges, manifest)", in_bytes(late), f"{late / early:.2f} × at first", verdict])
    data_bytes = median(n["packs"] for n in told[1:])
    rows.append(["new packs of a night", in_bytes(data_bytes), f"{late / data_bytes:.2f} × of it metadata", ""])
    rows.append(["an unchanged backup", in_bytes(unchanged), "", ""])
    rows.append([f"stored, all {count} nights kept", in_bytes(all_kept), f"{all_kept / live:.2f} × a fresh full", ""])
    verdict = targets.at_most("stored after prune ÷ fresh full", round(pruned / live, 2), STORED_LIMIT)
    rows.append([f"stored, {KEPT} kept and pruned", in_bytes(pruned), f"{pruned / live:.2f} × a fresh full", verdict])
    if refused:
        targets.is_true("prune works", False)
        say(f"prune failed: {refused}")
    print(table([f"{count} nights", "", "", "target"], rows))
    print(f"\n- Medians of {options.rounds} alternating restores.\n- Machine: {machine}.")
    return {"machine": machine, "nights": told, "restores": [restores, after], **targets.report()}


def night(tool, data, cluster, vectors, number, count):
    """Changes a little of everything and backs up; tells the new bytes of packs and of all that is not packs."""
    if number:
        rng = random.Random(SEED + number)
        cluster.run(
            "pgbench", "--no-vacuum", f"--random-seed={number}", "--transactions", TRANSACTIONS, "postgres"
        )
        changes.overwrite_vectors(vectors, CHANGED_VECTORS, DIMENSIONS, seed=SEED + number)
        files = sorted(files_of(data / "n8n/storage"))
        for path in rng.sample(files, min(CHANGED_FILES, len(files))):
            path.write_bytes(path.read_bytes() + rng.randbytes(100).hex().encode())
    cluster.sql("SELECT pg_switch_wal()", "CHECKPOINT")
    packs = stored(tool)
    say(f"night {number} of {count}")
    result = tool.measure_backup(data)
    new = stored(tool) - packs
    return {"packs": new, "metadata": result["stored_bytes"] - new, "wall": result["wall"]}


def fresh_full(work, binary, cluster, old, data):
    tool = lifeboat(work / "fresh", binary, cluster, encrypted=True, env={"LIFEBOAT_DATA": data})
    tool.measure_backup(data)
    return tool


def alternate(tools, data, rounds):
    """Restores of each tool's newest backup in turn: the medians of each."""
    runs = [[] for _ in tools]
    for _ in range(rounds):
        for tool, results in zip(tools, runs, strict=True):
            results.append(tool.measure_restore(data))
    return [{key: median(result[key] for result in results) for key in FIGURES} for results in runs]


def restore_row(title, target, runs, targets):
    own, fresh = runs
    ratio, cpu, read = (own[key] / fresh[key] for key in FIGURES)
    verdict = targets.at_most(target, round(ratio, 2), RESTORE_LIMIT)
    return [title, in_seconds(own["wall"]), f"{ratio:.2f} × a fresh full's (CPU {cpu:.2f} ×, bytes read {read:.2f} ×)", verdict]


def stored(tool):
    return tree_size(tool.repository / "packs")


def prune(tool, binary):
    """Deletes at once what retention dropped; returns what is stored then, and why it failed if it did."""
    try:
        run_measured([[binary, "prune", "--now"]], tool.home / "prune.log", tool.home, tool.env)
        return stored(tool), None
    except SystemExit as failure:
        return stored(tool), str(failure)
