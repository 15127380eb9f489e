"""Peak memory on a terabyte of relations, and on millions of files.

The relations are sparse files that stand in a real cluster's directory as its own would: the server does not know
them, and its backup interface has every file copied. A few pages of each segment, here and there, hold rows; holes
are read, hashed, compared and stored like everything else. With `--size` below 1 the peak at full size is the
measured slope's continuation.
"""

import random
import shutil
import time

from .data import SEED, SETTLE_SECONDS, Cluster
from .measure import GB, MB, need_space, say
from .report import Targets, describe_machine, in_seconds, table
from .tools import lifeboat

LIMIT = 256 * MB
SEGMENT_BYTES, PAGE_BYTES = 1 << 30, 8192
SEGMENTS, SMALL_RELATIONS, PAGES_PER_SEGMENT = 1000, 10_000, 256
FILES, FILES_PER_DIRECTORY = 5_000_000, 1000
# Of the size asked for: the first gives the slope.
SHARES = (0.25, 1.0)


def scale(work, binary, options):
    need_space(work, int(options.size * 40 * GB))
    targets, machine = Targets(), describe_machine(work)
    parts, rows, runs = {"relations": relations, "files": files}, [], []
    for name, part in parts.items():
        if options.only not in (None, name):
            continue
        found = part(work / name, binary, options.size, rows)
        shutil.rmtree(work / name)
        runs.append({"part": name, "runs": found})
        for phase in ("full", "unchanged"):
            peak = at_full_size([run for run in found if run["phase"] == phase], options.size)
            label = f"{name}, {phase}: peak at full size"
            verdict = targets.at_most(label, round(peak / MB, 1), LIMIT / MB)
            rows.append([f"**{label}**", "", f"{peak / MB:.0f} MB", "", verdict])
    print(table(["", "time", "peak memory", "read", "target (MB)"], rows))
    print(f"\n- Measured at {', '.join(f'{share * options.size:g}' for share in SHARES)} of the full size.")
    print(f"- Machine: {machine}.")
    return {"machine": machine, "runs": runs, **targets.report()}


def at_full_size(runs, size):
    """The larger run's peak, carried on along the line through both."""
    small, large = runs
    slope = (large["peak_bytes"] - small["peak_bytes"]) / (SHARES[1] - SHARES[0]) / size
    return large["peak_bytes"] + max(0, slope) * (1 - size)


def relations(place, binary, size, rows):
    data, found = place / "data", []
    data.mkdir(parents=True)
    place.chmod(0o755)
    with Cluster(data / "postgres", place / "socket") as cluster:
        cluster.sql("CREATE DATABASE large")
        cluster.rest()
        home = max((data / "postgres/base").iterdir(), key=lambda path: int(path.name))
        made = (0, 0)
        for share in SHARES:
            wanted = tuple(max(1, round(count * size * share)) for count in (SEGMENTS, SMALL_RELATIONS))
            say(f"making {wanted[0]} segments and {wanted[1]} small relations")
            make_relations(home, made, wanted)
            made = wanted
            tool = lifeboat(place, binary, cluster, encrypted=True)
            found += measure(tool, data, f"{wanted[0]} GiB of relations", share, rows)
    return found


def make_relations(home, made, wanted):
    """Relations of up to 30 segments, and beside them small ones."""
    for number in range(made[0], wanted[0]):
        relation, segment = divmod(number, 30)
        path = home / (f"{200_000 + relation}" + (f".{segment}" if segment else ""))
        rng = random.Random(SEED + number)
        with open(path, "wb") as file:
            file.truncate(SEGMENT_BYTES)
            for page in rng.sample(range(SEGMENT_BYTES // PAGE_BYTES), PAGES_PER_SEGMENT):
                file.seek(page * PAGE_BYTES)
                file.write(rows_page(rng))
        own_as(path, home)
    for number in range(made[1], wanted[1]):
        path = home / f"{300_000 + number}"
        path.write_bytes(rows_page(random.Random(number)) * (1 + number % 4))
        own_as(path, home)


def rows_page(rng):
    """Half noise, half text."""
    return (rng.randbytes(2048) + rng.randbytes(1024).hex().encode()).ljust(PAGE_BYTES, b" ")


def own_as(path, directory):
    owner = directory.stat()
    shutil.chown(path, owner.st_uid, owner.st_gid)


def files(place, binary, size, rows):
    home, found, made = place / "data/volume", [], 0
    for share in SHARES:
        wanted = max(1, round(FILES * size * share))
        say(f"making {wanted} files")
        for number in range(made, wanted):
            directory = home / f"{number // (FILES_PER_DIRECTORY * 100):03}/{number // FILES_PER_DIRECTORY:06}"
            if number % FILES_PER_DIRECTORY == 0 or number == made:
                directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{number:08}.json").write_text(f'{{"id": {number}, "seed": "{SEED * number:x}"}}\n')
        made = wanted
        tool = lifeboat(place, binary, encrypted=True)
        found += measure(tool, place / "data", f"{wanted:,} files", share, rows)
    return found


def measure(tool, data, label, share, rows):
    """A full backup and an unchanged one."""
    time.sleep(SETTLE_SECONDS)
    found = []
    for phase in ("full", "unchanged"):
        result = tool.measure_backup(data, warm=False) | {"phase": phase, "share": share, "data": label}
        found.append(result)
        peak = f"{result['peak_bytes'] / MB:.0f} MB"
        rows.append([f"{label}: {phase}", in_seconds(result["wall"]), peak, f"{result['read_bytes'] / GB:.2f} GB", ""])
        say(f"{label}: {phase}: {peak}")
    return found
