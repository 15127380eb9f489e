"""A PostgreSQL cluster with Lifeboat beside pgBackRest: full, two increments, restore, in alternating rounds.

pgBackRest as its manual advises for small repositories: bundles, block increments, zstd, two processes, encrypted.
It archives WAL all the time, by the server's own `archive_command`; Lifeboat takes the WAL of its backup with it. So
there are two figures of what pgBackRest stores: the backup, and with it the WAL archived since the one before.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from statistics import median

from .data import ROWS_PER_SCALE, Cluster, make_for_server
from .measure import GB, MB, need_space, say, tree_size
from .report import Targets, describe_machine, in_bytes, in_seconds, table
from .tools import PASSPHRASE, Tool, is_encrypted, lifeboat, newest, versions

SCALE = 60
RESTORE = "restore"
# At most this many times what pgBackRest takes. Bytes are without its archived WAL, which makes it harder.
TIME_LIMITS = {"full": 1.0, RESTORE: 1.0}
STORED_LIMIT = 1.2
FIRST_WITH_BLOCKS = (2, 46)
ARCHIVED_SECONDS = 600
NOT_ARCHIVING = "/bin/true"


def pgbackrest(work, binary, options):
    scale = max(1, round(SCALE * options.size))
    need_space(work, int(scale * 16 * MB * 8 + GB))
    found = newest("pgbackrest")
    check_version(found)
    machine, data, targets = describe_machine(work), work / "data", Targets()
    data.mkdir()
    # The server's user runs it, and may not look into a cache in our home.
    (work / "bin").mkdir()
    program = shutil.copy(found, work / "bin/pgbackrest")
    settings = f"archive_mode = on\narchive_command = '{NOT_ARCHIVING}'\nwal_level = replica\n"
    with Cluster(data / "postgres", work / "socket", settings) as cluster:
        tools = [lifeboat(work, binary, cluster, encrypted=True), PgBackRest(work, program, cluster)]
        runs = alternate(tools, cluster, data, scale, options.rounds)
        encrypted = is_encrypted(tools[0])
        told = versions(binary, [program], cluster)
        size = tree_size(data)
    targets.is_true("encryption is on", encrypted)
    print(render(runs, targets))
    print(f"\n- Medians of {options.rounds} alternating rounds on {size / MB:.0f} MB: pgbench at scale {scale}.")
    print(f"- Machine: {machine}.\n- Versions: " + ", ".join(f"{name} {version}" for name, version in told.items()))
    print(
        "- Both encrypt, compress with zstd at level 3 and sync what they store and restore. pgBackRest:"
        " `process-max=2`, `repo-bundle=y`, `repo-block=y`, `repo-cipher-type=aes-256-cbc`, `start-fast=y`.\n"
        "- CPU is of the tool's processes; the server's beside it has its part of the backup, pgBackRest's"
        " `archive_command` too. WAL is archived only while it is pgBackRest's turn and while rows change.\n"
        "- Lifeboat's bytes hold the WAL that its backup needs, and it decodes every new byte once before it counts."
        " pgBackRest waits for the next full second before it copies, and its restore leaves the WAL to the server's"
        " recovery. Every restore was compared with its source."
    )
    return {"machine": machine, "versions": told, "data_bytes": size, "runs": runs, **targets.report()}


def check_version(program):
    told = subprocess.run([program, "version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.(\d+)", told)
    if not version or tuple(map(int, version.groups())) < FIRST_WITH_BLOCKS:
        sys.exit(f"bench: {told.strip()} has no block increments, 2.46 has; scripts/setup adds a source of a newer one")


class PgBackRest(Tool):
    """Run by the server's user, as its archiving is."""

    def __init__(self, work, program, cluster):
        self.cluster, self.settings = cluster, work / "pgbackrest/pgbackrest.conf"
        words = [program, f"--config={self.settings}", "--stanza=bench"]
        self.create, self.archive_command = [*words, "stanza-create"], " ".join(map(str, [*words, "archive-push %p"]))
        # Becomes that user without another process that would be measured.
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []

        def restore(_):
            target = work / "restored/postgres"
            make_for_server(target)
            return [[*as_user, *words, f"--pg1-path={target}", "restore"]]

        # The first of a repository becomes a full one.
        backup = [[*as_user, *words, "--type=incr", "backup"]]
        super().__init__(work, "pgbackrest", "pgBackRest", lambda _: backup, restore)

    def begin(self):
        """An empty repository that knows the cluster."""
        super().begin()
        self.settings.write_text(self.configuration())
        for directory in (self.repository, self.cache):
            directory.rmdir()
            make_for_server(directory)
        archive(self.cluster, NOT_ARCHIVING)
        self.cluster.call(*self.create)
        self.archived_bytes = 0

    def configuration(self):
        return (
            f"[global]\nrepo1-path={self.repository}\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={PASSPHRASE}\n"
            "repo1-bundle=y\nrepo1-block=y\nrepo1-retention-full=9\n"
            "compress-type=zst\ncompress-level=3\nprocess-max=2\nstart-fast=y\n"
            f"log-level-file=off\nlog-level-console=warn\nlock-path={self.cache}\nspool-path={self.cache}\n"
            f"[bench]\npg1-path={self.cluster.data}\npg1-socket-path={self.cluster.socket}\npg1-user=postgres\n"
        )

    def measure_backup(self, data, warm=True):
        """Tells the archived WAL apart: all since the backup before."""
        before = self.wal_bytes()
        result = super().measure_backup(data, warm)
        after = self.wal_bytes()
        result["stored_bytes"] -= after - before
        result["with_wal_bytes"] = result["stored_bytes"] + after - self.archived_bytes
        self.archived_bytes = after
        return result

    def wal_bytes(self):
        return tree_size(self.repository / "archive")


def alternate(tools, cluster, data, scale, rounds):
    """Every round begins with new tables and empty repositories; who comes first changes."""
    own, peer = tools
    steps = phases(scale * ROWS_PER_SCALE)
    runs = {phase: {tool.key: [] for tool in tools} for phase in [*steps, RESTORE]}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        order = [own, peer] if number % 2 == 0 else [peer, own]
        archive(cluster, NOT_ARCHIVING)
        cluster.fill(scale)
        # Else the first one who asks the catalogs changes them: hint bits.
        cluster.sql("VACUUM")
        cluster.rest()
        for tool in tools:
            tool.begin()
        for phase, change in steps.items():
            archive(cluster, peer.archive_command)
            cluster.sql(*change)
            cluster.rest()
            for tool in order:
                archive(cluster, peer.archive_command if tool is peer else NOT_ARCHIVING)
                runs[phase][tool.key].append(measure_backup(cluster, tool, data))
        for tool in order:
            runs[RESTORE][tool.key].append(tool.measure_restore(data))
    return runs


def phases(rows):
    update = "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE "
    return {
        "full": [],
        "1 % of rows updated, at random": ["SELECT setseed(0.5)", update + "random() < 0.01"],
        "1 % of rows updated, in one place": [update + f"aid BETWEEN {rows // 2 + 1} AND {rows // 2 + rows // 100}"],
    }


def archive(cluster, command):
    """What the server archives with from now on; nothing waits to be archived then."""
    wait_archived(cluster)
    cluster.sql(f"ALTER SYSTEM SET archive_command = '{command}'", "SELECT pg_reload_conf()")
    # The signal takes its time.
    time.sleep(1)


def wait_archived(cluster):
    status, until = cluster.data / "pg_wal/archive_status", time.monotonic() + ARCHIVED_SECONDS
    while any(status.glob("*.ready")):
        if time.monotonic() > until:
            log = (cluster.socket / "log").read_text(errors="replace")[-2000:]
            sys.exit(f"bench: after {ARCHIVED_SECONDS} s WAL still waits to be archived; the server's log:\n{log}")
        time.sleep(0.1)


def measure_backup(cluster, tool, data):
    """The server's part of it too. Only the peer has WAL elsewhere than in the backup."""
    before = cluster.cpu_seconds()
    result = tool.measure_backup(data)
    result["all_cpu"] = result["cpu"] + cluster.cpu_seconds() - before
    return {"with_wal_bytes": result["stored_bytes"]} | result


MEASURES = [
    ("time", "wall", in_seconds),
    ("CPU", "cpu", in_seconds),
    ("CPU, with the server's", "all_cpu", in_seconds),
    ("newly stored", "stored_bytes", in_bytes),
    ("newly stored, with archived WAL", "with_wal_bytes", in_bytes),
]


def render(runs, targets):
    rows = []
    for phase, results in runs.items():
        own, peer = results.values()
        title = phase
        for label, key, shown in MEASURES:
            if key not in own[0]:
                continue
            ratio = median(a[key] / b[key] for a, b in zip(own, peer, strict=True))
            cells = [shown(median(run[key] for run in found)) for found in (own, peer)]
            rows.append([title, label, *cells, f"{ratio:.2f}", judge(phase, key, ratio, targets)])
            title = ""
    return table(["", "", "Lifeboat", "pgBackRest", "Lifeboat ÷ pgBackRest", "target"], rows, texts=2)


def judge(phase, key, ratio, targets):
    if key == "wall" and phase in TIME_LIMITS:
        return targets.at_most(f"{phase}, time ÷ pgBackRest's", round(ratio, 2), TIME_LIMITS[phase])
    if key == "stored_bytes" and phase != "full":
        return targets.at_most(f"{phase}, newly stored ÷ pgBackRest's", round(ratio, 2), STORED_LIMIT)
    return ""
