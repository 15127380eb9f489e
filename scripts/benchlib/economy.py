"""Newly stored bytes after typical changes: Lifeboat, restic and borg on the same data.

Lifeboat encrypts, as restic always does, but for the snapshots of Qdrant; borg does not. Stored is all that a backup adds
to the repository's directory, indexes and metadata too.
"""

import shutil
import time

from . import changes
from .data import SETTLE_SECONDS, Cluster, make_ollama
from .measure import GB, MB, need_space, say, tree_size
from .qdrant import SnapshotTool, recorded_pair, synthetic_pair
from .report import Targets, describe_machine, in_bytes, table
from .tools import borg, build, is_encrypted, lifeboat, newest_restic, restic, versions

SCALE, TRANSACTIONS = 50, 6000
VECTOR_BYTES = 256 * MB
SMALL_FILES = 20_000
MODEL_BYTES = 200 * MB
# Beside the model itself, a backup of a moved one stores its new name.
STORED_ONCE = 0.01


def economy(work, binary, options):
    parts = {
        "postgres": postgres,
        "qdrant": qdrant,
        "vectors": vectors,
        "files": small_files,
        "models": models,
    }
    chosen = {name: part for name, part in parts.items() if options.only in (None, name)}
    need_space(work, int(options.size * 8 * GB))
    bench = Bench(work, binary, options.size)
    for name, part in chosen.items():
        part(bench, work / name)
        shutil.rmtree(work / name)
    heads = ["newly stored", "Lifeboat", "restic", "borg", "÷ restic", "target"]
    print(table(heads, bench.rows))
    print(f"\n- Machine: {bench.machine}.")
    shown = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    print(f"- Versions: {shown}.\n- Lifeboat did not encrypt: {', '.join(sorted(bench.unencrypted)) or 'nothing'}.")
    return {"machine": bench.machine, "versions": bench.versions, "steps": bench.steps, **bench.targets.report()}


class Bench:
    """The rows so far."""

    def __init__(self, work, binary, size):
        self.binary, self.size, self.restic = binary, size, newest_restic()
        self.machine, self.targets = describe_machine(work), Targets()
        self.versions = versions(binary, [self.restic, "borg"])
        self.rows, self.steps, self.unencrypted = [], [], set()

    def tools(self, place, cluster=None):
        own = lifeboat(place, self.binary, cluster, encrypted=True)
        return [own, restic(place, self.restic), borg(place)]

    def step(self, name, tools, data, target=None):
        """A row: backs up with every tool and compares with restic, where there is a target for that."""
        stored = {tool.key: tool.measure_backup(data)["stored_bytes"] for tool in tools}
        if not is_encrypted(tools[0]):
            self.unencrypted.add(name.split(":")[0])
        ratio = stored["lifeboat"] / stored["restic"]
        verdict = self.targets.at_most(name, round(ratio, 3), target) if target else ""
        self.row(name, [in_bytes(stored[tool.key]) for tool in tools], f"{ratio:.2f}", verdict)
        self.steps.append({"step": name, "stored_bytes": stored})
        return stored

    def row(self, name, cells, ratio, verdict):
        self.rows.append([name, *cells, ratio, verdict])
        say(f"{name}: {', '.join(cells)}: {ratio} {verdict}")


def place_of(place):
    (place / "data").mkdir(parents=True)
    place.chmod(0o755)
    return place / "data"


def postgres(bench, place):
    data, scale = place_of(place), max(1, round(SCALE * bench.size))
    say(f"filling pgbench at scale {scale}")
    with Cluster(data / "postgres", place / "socket") as cluster:
        cluster.fill(scale)
        tools = bench.tools(place, cluster)

        def step(name, target):
            cluster.rest()
            bench.step(f"PostgreSQL: {name}", tools, data, target)

        step("full", 1.05)
        transactions = round(TRANSACTIONS * bench.size)
        cluster.run("pgbench", "--no-vacuum", "--random-seed=1", "--transactions", transactions, "postgres")
        step(f"{transactions} TPC-B transactions", 0.35)
        cluster.sql("SELECT setseed(0.5)", "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE random() < 0.01")
        step("1 % of rows updated, at random", 0.8)
        cluster.sql(*changes.delete_and_append(scale))
        step("oldest 5 % of rows deleted, as many appended", 1.0)


def qdrant(bench, place):
    """Through the archive's own writer, cut as the adapter cuts: no server, because it must be these very bytes."""
    program = build("--example", "store-snapshot")
    for name, pair in (("recorded", recorded_pair), ("larger", synthetic_pair)):
        data = place_of(place / name)
        own = SnapshotTool(place / name, program)
        tools = [own, restic(place / name, bench.restic), borg(place / name)]
        for label, target in ((f"Qdrant, {name} pair: first", None), (f"Qdrant, {name} pair: second", 0.45)):
            say("making the snapshot")
            pair(data / "kb.snapshot", bench.size)
            time.sleep(SETTLE_SECONDS)
            bench.step(label, tools, data, target)


def vectors(bench, place):
    """Vectors as embedding models give them, in a mapped file: 1 % of them overwritten where they lie, at random."""
    for dimensions in (768, 384):
        data = place_of(place / str(dimensions))
        file = data / "volume/vectors.bin"
        file.parent.mkdir()
        changes.make_vectors(file, int(VECTOR_BYTES * bench.size), dimensions)
        tools = bench.tools(place / str(dimensions))
        time.sleep(SETTLE_SECONDS)
        bench.step(f"mapped file of {dimensions}-dimensional vectors: full", tools, data)
        changes.overwrite_vectors(file, 0.01, dimensions)
        time.sleep(SETTLE_SECONDS)
        bench.step(f"mapped file of {dimensions}-dimensional vectors: 1 % overwritten", tools, data, 0.25)


def small_files(bench, place):
    data, count = place_of(place), round(SMALL_FILES * bench.size)
    changes.make_small_files(data / "volume", count)
    tools = bench.tools(place)
    time.sleep(SETTLE_SECONDS)
    bench.step(f"{count} small files: full", tools, data)
    changes.change_small_files(data / "volume", count, 0.01)
    time.sleep(SETTLE_SECONDS)
    bench.step(f"{count} small files: 1 % changed", tools, data, 1.0)


def models(bench, place):
    """What has been stored is found again under another name, elsewhere, and by another host."""
    data, size = place_of(place), int(MODEL_BYTES * bench.size)
    make_ollama(data / "ollama", size)
    changes.make_model_file(data / "volume/model.gguf", size)
    tools = bench.tools(place)
    time.sleep(SETTLE_SECONDS)
    bench.step("models: full", tools, data)

    def once(name, step_tools):
        time.sleep(SETTLE_SECONDS)
        stored = {tool.key: tool.measure_backup(data)["stored_bytes"] for tool in step_tools}
        share = stored["lifeboat"] / size
        verdict = bench.targets.at_most(name, round(share, 4), STORED_ONCE)
        cells = [in_bytes(stored[tool.key]) for tool in step_tools] + ["–"] * (len(tools) - len(step_tools))
        bench.row(name, cells, f"{share:.3f} of the model", verdict)
        bench.steps.append({"step": name, "stored_bytes": stored})

    tags = data / "ollama/models/manifests/registry.ollama.ai/library"
    (tags / "bench").rename(tags / "renamed")
    (data / "volume/model.gguf").rename(data / "volume/other.gguf")
    once("models: renamed", tools)
    # New inodes, new times: nothing but the content tells.
    shutil.copytree(data / "ollama", data / "copy")
    shutil.rmtree(data / "ollama")
    (data / "copy").rename(data / "ollama")
    (data / "volume/moved").mkdir()
    shutil.copyfile(data / "volume/other.gguf", data / "volume/moved/model.gguf")
    (data / "volume/other.gguf").unlink()
    once("models: moved", tools)
    # A host of its own: the same data and repository, no cache.
    second = tools[0]
    shutil.rmtree(second.cache)
    second.cache.mkdir()
    once("models: a second host", [second])
    say(f"the data are {in_bytes(tree_size(data))}")
