"""The tools that are compared: Lifeboat and its peers."""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .measure import files_of, run_measured, same_start, say, set_aside, tree_size

ROOT = Path(__file__).resolve().parents[2]
PASSPHRASE = "benchmark passphrase"


class Tool:
    """One way of backing up. `backup` and `restore` are programs joined by pipes, given the run's number."""

    def __init__(self, work, key, name, backup, restore, env=None, init=None, file=None):
        self.key, self.name, self.backup, self.restore, self.file = key, name, backup, restore, file
        self.home, self.restored, self.runs = work / key, work / "restored", 0
        self.repository, self.cache = self.home / "repository", self.home / "cache"
        # Nothing of the caller's settings, and caches of its own.
        self.env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TZ": "UTC", "HOME": str(self.home)}
        self.env |= {name: str(value) for name, value in (env or {}).items()}
        self.init = init
        self.begin()

    def begin(self):
        """An empty repository, and no caches of another."""
        set_aside(self.home)
        self.repository.mkdir(parents=True)
        self.cache.mkdir()
        if self.init:
            done = subprocess.run(self.init, env=self.env, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"bench: {' '.join(map(str, self.init))} failed:\n{done.stderr[-2000:]}")

    def measure_backup(self, data, warm=True):
        say(f"backup: {self.name}")
        self.runs += 1
        before = tree_size(self.repository)
        if warm:
            same_start(data)
        output = self.repository / f"{self.runs}.{self.key}" if self.file else None
        result = run_measured(self.backup(self.runs), self.home / "log", data, self.env, output)
        result["stored_bytes"] = tree_size(self.repository) - before
        if self.key == "lifeboat":
            manifest = json.loads((self.home / "log.out").read_text())["manifest"]
            result["read_bytes"] = manifest["read_bytes"]
        return result

    def measure_restore(self, data):
        say(f"restore: {self.name}")
        same_start(self.repository)
        self.restored.mkdir()
        result = run_measured(self.restore(self.runs), self.home / "log", self.restored, self.env)
        check_restored(self.name, data, self.restored)
        set_aside(self.restored)
        return result


def lifeboat(work, binary, cluster=None, encrypted=False, env=None):
    home = work / "lifeboat"
    settings = {"DOCKER_HOST": "none", "LOG_LEVEL": "warn", "LIFEBOAT_PROJECT_DIR": work / "no-project"}
    settings |= {"LIFEBOAT_REPOSITORY": home / "repository", "LIFEBOAT_STATE": home / "cache"}
    settings["LIFEBOAT_DATA"] = work / "data"
    if cluster:
        settings |= {"POSTGRES_HOST": cluster.socket, "POSTGRES_USER": "postgres", "POSTGRES_DATA": cluster.data}
    if encrypted:
        settings["AGE_PASSPHRASE"] = PASSPHRASE
    backup, restore = [binary, "backup", "--json"], [binary, "restore", "latest", "--into", work / "restored"]
    return Tool(work, "lifeboat", "Lifeboat", lambda _: [backup], lambda _: [restore], settings | (env or {}))


def is_encrypted(tool):
    """Whether Lifeboat's repository says that it is."""
    config = json.loads((tool.repository / "config.json").read_text())
    return config.get("encryption") == "age"


def tar_with(work, key, name, pack, unpack):
    """No increments: each backup is a file of its own."""
    tar, untar = ["tar", "-cf", "-", "."], ["tar", "-xpf", "-"]
    restore = lambda run: [[*unpack, work / key / f"repository/{run}.{key}"], untar]
    return Tool(work, key, name, lambda _: [tar, pack], restore, file=True)


def zstd(work, threads):
    return tar_with(
        work, "zstd", f"tar, zstd -3 -T{threads}", ["zstd", "-q", "-3", f"-T{threads}"], ["zstd", "-q", "-d", "-c"]
    )


def gzip(work):
    return tar_with(work, "gzip", "tar, gzip", ["gzip", "-c"], ["gzip", "-d", "-c"])


def restic(work, program):
    home, password = work / "restic", work / "password"
    password.write_text("benchmark\n")
    env = {"RESTIC_REPOSITORY": home / "repository", "RESTIC_CACHE_DIR": home / "cache"}
    env["RESTIC_PASSWORD_FILE"] = password
    backup = [[program, "--quiet", "backup", "."]]
    restore = [[program, "--quiet", "restore", "latest", "--target", work / "restored"]]
    return Tool(work, "restic", "restic", lambda _: backup, lambda _: restore, env, [program, "init"])


def borg(work):
    home = work / "borg"
    env = {"BORG_REPO": home / "repository", "BORG_BASE_DIR": home, "BORG_CACHE_DIR": home / "cache"}
    env["BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"] = "yes"
    backup = lambda run: [["borg", "create", "--compression", "zstd,3", f"::{run}", "."]]
    restore = lambda run: [["borg", "extract", f"::{run}"]]
    return Tool(work, "borg", "borg", backup, restore, env, ["borg", "init", "--encryption", "none"])


def newest_restic():
    return newest("restic")


def newest(name):
    """A program from apt's newest package of its name, unpacked once into the user's cache, or the one on the PATH.

    Debian's stable releases lag years behind; `scripts/setup` adds the next one's source where it needs it. The
    unpacked program runs with this machine's libraries: of the programs here none asks for newer ones.
    """
    listed = subprocess.run(["apt-cache", "madison", name], capture_output=True, text=True)
    versions = [line.split("|")[1].strip() for line in listed.stdout.splitlines() if line.count("|") == 2]
    told = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", name], capture_output=True, text=True).stdout
    if not versions or versions[0] == told:
        return shutil.which(name) or sys.exit(f"bench: there is no {name}; scripts/setup installs it")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lifeboat-bench"
    home = cache / f"{name}-{versions[0]}"
    program = home / "usr/bin" / name
    if not program.exists():
        say(f"fetching {name} {versions[0]} into {home}")
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", f"{name}={versions[0]}"], cwd=cache, check=True)
        package = next(cache.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, home], check=True)
        package.unlink()
    return program


def check_restored(tool, data, restored):
    """Every file is there with its bytes; of the cluster, the tables: the rest differs with a running server."""
    for path in files_of(data):
        name = path.relative_to(data)
        if name.parts[0] == "postgres" and not (name.parts[1] == "base" and path.name.isdigit()):
            continue
        copy = restored / name
        if not copy.is_file() or not filecmp.cmp(path, copy, shallow=False):
            sys.exit(f"bench: {tool} did not restore {name}")


def build(*target):
    """Builds what is to be measured; without arguments, the program itself."""
    target = target or ("--release", "--bin", "lifeboat")
    say(f"building {target[-1]}")
    path = os.environ["PATH"] + ":" + str(Path.home() / ".cargo/bin")
    command = ["cargo", "build", "--quiet", "--locked", *target]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}).returncode:
        sys.exit(f"bench: {target[-1]} was not built")
    built = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / ("release" if "--release" in target else "debug")
    return built / ("examples" if "--example" in target else "") / target[-1]


def versions(binary, programs, cluster=None):
    """What was measured. `programs` are names on the PATH, and paths."""
    commands = {Path(program).name: [program, "--version"] for program in programs}
    for name in commands.keys() & {"restic", "pgbackrest"}:
        commands[name][1] = "version"
    if cluster:
        commands["PostgreSQL"] = [cluster.bin / "postgres", "--version"]
    commands["Lifeboat"] = [binary, "--version"]
    told = {name: subprocess.run(command, capture_output=True, text=True).stdout for name, command in commands.items()}
    return {name: re.search(r"\d+\.\d+[.\d]*", text).group() for name, text in told.items()}
