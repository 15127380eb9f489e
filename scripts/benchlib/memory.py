"""Peak memory on a lot of data in few files."""

import random
import shutil
import time

from .compare import MEASURES
from .data import SEED, SETTLE_SECONDS
from .measure import GB, MB, need_space, say
from .report import describe_machine
from .tools import lifeboat

MEMORY_LIMIT = 200 * MB


def memory(work, binary, gigabytes):
    """Backs up a tenth of the data and then all of it, each into a new repository: the peak must not grow with it."""
    need_space(work, int(gigabytes * GB * 1.9) + GB)
    volume, machine, runs = work / "data/volume", describe_machine(work), []
    volume.mkdir(parents=True)
    print("| data | | time | CPU | peak memory | newly stored |\n|--:|---|--:|--:|--:|--:|")
    for files in (1, 10):
        size = int(gigabytes * GB / 10)
        say(f"making {files * size / GB:g} GB")
        for number in range(len(list(volume.iterdir())), files):
            half_compressible(volume / f"{number}.bin", size, SEED + number)
        tool = lifeboat(work, binary)
        time.sleep(SETTLE_SECONDS)
        for phase in ("first full", "unchanged"):
            result = tool.measure_backup(volume.parent)
            runs.append({"data_bytes": files * size, "phase": phase, **result})
            cells = [shown(result[key]) for _, key, shown in MEASURES]
            print(f"| {files * size / GB:g} GB | {phase} | " + " | ".join(cells) + " |", flush=True)
        shutil.rmtree(tool.home)
    print("\n- A volume of files of which one half is noise and the other compresses to half; none is sparse.")
    print(f"- Machine: {machine}.")
    return {"machine": machine, "runs": runs, "peak_bytes": max(run["peak_bytes"] for run in runs)}


def half_compressible(path, size, seed):
    """Each MiB is half noise and half digits that compress to half; nothing repeats."""
    rng, left = random.Random(seed), size
    with open(path, "wb") as file:
        while left:
            piece = rng.randbytes(1 << 19) + rng.randbytes(1 << 18).hex().encode()
            left -= file.write(piece[:left])
