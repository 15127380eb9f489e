"""The data that is backed up: a PostgreSQL cluster, files as n8n leaves them, an Ollama directory."""

import hashlib
import json
import os
import pwd
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .measure import MB, family_cpu

SEED = 20261101
ROWS_PER_SCALE = 100_000  # of pgbench_accounts
SETTLE_SECONDS = 3  # files younger than two seconds are trusted by no tool that looks at times


class Cluster:
    """A PostgreSQL server on a socket of its own, run as `postgres` when we are root; `settings` override ours."""

    def __init__(self, data, socket, settings=""):
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        if not found:
            sys.exit("bench: no PostgreSQL below /usr/lib/postgresql; scripts/setup installs it")
        self.bin, self.data, self.socket, self.settings = found[-1], data, socket, settings

    def __enter__(self):
        for directory in (self.data, self.socket):
            make_for_server(directory)
        self.call("initdb", "--pgdata", self.data, "--username", "postgres", "--auth", "trust", "--no-sync")
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.socket}'\n"
                # Idle means idle; and no spare WAL, which the peers would copy and Lifeboat leaves out.
                "autovacuum = off\ncheckpoint_timeout = 1d\nwal_recycle = off\nmin_wal_size = 32MB\n"
                # Only for making the data: it is all in files after a checkpoint.
                "fsync = off\n" + self.settings
            )
        self.call("pg_ctl", "start", "--wait", "--pgdata", self.data, "--log", self.socket / "log")
        return self

    def __exit__(self, *_):
        self.call("pg_ctl", "stop", "--wait", "--mode", "fast", "--pgdata", self.data)

    def fill(self, scale):
        self.run("pgbench", "--initialize", "--quiet", "--scale", scale, "postgres")

    def sql(self, *statements):
        """Runs statements in one session."""
        commands = [word for statement in statements for word in ("--command", statement)]
        self.run("psql", "--no-psqlrc", "--quiet", *commands, "postgres")

    def rest(self):
        """Everything is in files, nothing but an empty segment in the log, and the files' times can be trusted."""
        self.sql("SELECT pg_switch_wal()", "CHECKPOINT")
        time.sleep(SETTLE_SECONDS)

    def cpu_seconds(self):
        """What all of the server's processes have used so far, and the commands that it ran."""
        return family_cpu(int((self.data / "postmaster.pid").read_text().split()[0]))

    def run(self, client, *words):
        self.call(client, "--host", self.socket, "--username", "postgres", *words)

    def call(self, program, *words):
        command = [str(self.bin / program), *map(str, words)]
        if os.getuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        # Into a file: the server keeps what it inherits open, and a pipe would never end.
        with tempfile.TemporaryFile("w+") as log:
            if subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode:
                log.seek(0)
                sys.exit(f"bench: {program} failed:\n{log.read()[-2000:]}")


def make_for_server(directory):
    """A directory that the server's user owns."""
    directory.mkdir(mode=0o700)
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(directory, user.pw_uid, user.pw_gid)


def make_n8n(home, count):
    """Executions as JSON and binary data as they come: two thirds text, one third noise."""
    rng = random.Random(SEED)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(3000)]
    home.mkdir(parents=True)
    (home / "config").write_text('{"encryptionKey": "benchmark-only-key-benchmark-only"}\n')
    (home / "config").chmod(0o600)
    for number in range(count):
        directory = home / "storage/workflows" / f"w{number % 20:02}" / "executions" / str(number) / "binary_data"
        directory.mkdir(parents=True)
        if number % 3:
            texts = [" ".join(rng.choices(words, k=60)) for _ in range(rng.randint(10, 120))]
            body = json.dumps([{"id": rng.getrandbits(32), "text": text} for text in texts]).encode()
        else:
            body = rng.randbytes(rng.randint(10_000, 130_000))
        (directory / f"{rng.getrandbits(128):032x}").write_bytes(body)


def make_ollama(home, model_bytes):
    """Two models that share their weights."""
    blobs = home / "models/blobs"
    blobs.mkdir(parents=True)
    rng = random.Random(SEED)
    weights = add_blob(blobs, (rng.randbytes(MB) for _ in range(model_bytes // MB)))
    for tag in ("latest", "chat"):
        config = add_blob(blobs, [json.dumps({"model_format": "gguf", "tag": tag}).encode()])
        template = add_blob(blobs, [f"{{{{ .Prompt }}}} {tag}".encode()])
        path = home / "models/manifests/registry.ollama.ai/library/bench" / tag
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": [weights, template]}))


def add_blob(blobs, pieces):
    sha256, size = hashlib.sha256(), 0
    with open(blobs / "new", "wb") as file:
        for piece in pieces:
            sha256.update(piece)
            size += file.write(piece)
    (blobs / "new").rename(blobs / f"sha256-{sha256.hexdigest()}")
    return {"digest": f"sha256:{sha256.hexdigest()}", "size": size}
