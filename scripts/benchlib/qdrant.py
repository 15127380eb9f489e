"""Pairs of consecutive Qdrant snapshots, and their way into a repository."""

import random
import shutil
import subprocess

from .changes import VALUE_BYTES, floats
from .data import SEED
from .tools import ROOT, Tool

FIXTURES = ROOT / "tests/fixtures/qdrant"
POINTS, DIMENSIONS, SEGMENTS = 60_000, 192, 4
PAYLOAD_BYTES = 640
VERSION_BYTES = 8
# Files of fixed sizes, as the server makes them: the rest is a hole.
CHUNK_BYTES, FLAGS_BYTES, WAL_BYTES = 32 << 20, 1 << 20, 32 << 20


class SnapshotTool(Tool):
    """Lifeboat's writer and repository, given a snapshot as the adapter gives it what the server sends."""

    def __init__(self, work, program):
        home = work / "lifeboat"
        store = [program, home / "repository", home / "cache", work / "data/kb.snapshot"]
        super().__init__(work, "lifeboat", "Lifeboat", lambda _: [store], None)


def recorded_pair(path, _size):
    """The two that were recorded from a real server, one after the other."""
    number = 2 if path.exists() else 1
    packed = FIXTURES / f"kb-{number}.snapshot.zst"
    subprocess.run(["zstd", "-dqf", packed, "-o", path], check=True)


def synthetic_pair(path, size):
    """The recorded layout with more points; then 1 % of them overwritten where they lie, and 1 % appended."""
    home = path.parent.parent / "collection"
    points = round(POINTS * size) // SEGMENTS
    second = home.exists()
    for segment in range(SEGMENTS):
        files = home / f"0/segments/{segment:08x}-0000-4000-8000-000000000000/snapshot/files"
        if not second:
            make_segment(files, segment)
        change_segment(files, segment, points, second)
    for name in ("open-1", "open-2"):
        wal = home / "0/wal" / name
        wal.parent.mkdir(parents=True, exist_ok=True)
        sparse(wal, WAL_BYTES, {0: random.Random(SEED + second).randbytes(2000 if second else 200_000)})
    (home / "config.json").write_text('{"params":{"vectors":{"size":192,"distance":"Cosine","on_disk":true}}}')
    pack(home, path)


def make_segment(files, segment):
    for name in ("vector_storage/vectors", "vector_storage/deleted", "payload_storage"):
        (files / name).mkdir(parents=True)
    (files / "version.info").write_text("0.6.0")
    (files / "vector_storage/vectors/config.json").write_text(f'{{"chunk_size_bytes":{CHUNK_BYTES}}}')
    sparse(files / "vector_storage/deleted/flags_a.dat", FLAGS_BYTES, {})
    for name in ("mutable_id_tracker.mappings", "mutable_id_tracker.versions"):
        (files / name).write_bytes(b"")


def change_segment(files, segment, points, second):
    """The first time, fills the segment; the second, overwrites and appends."""
    rng = random.Random(SEED + segment + 100 * second)
    first = range(points)
    written = [*rng.sample(first, points // 100), *range(points, points + points // 100)] if second else first
    vector = DIMENSIONS * VALUE_BYTES
    in_chunk = CHUNK_BYTES // vector
    chunks, payload = {}, {}
    for number in written:
        chunk, at = divmod(number, in_chunk)
        chunks.setdefault(chunk, {})[at * vector] = floats(rng, DIMENSIONS)
        # A payload that changes is written anew at the end; the tracker has its place.
        place = number + (2 * points if second else 0)
        payload[place * PAYLOAD_BYTES] = passage(rng)
    for chunk, pieces in chunks.items():
        sparse(files / f"vector_storage/vectors/chunk_{chunk}.mmap", CHUNK_BYTES, pieces)
    page = 3 * points * PAYLOAD_BYTES
    sparse(files / "payload_storage/page_0.dat", -(-page // CHUNK_BYTES) * CHUNK_BYTES, payload)
    tracker = {number * 16: rng.randbytes(3) + bytes(13) for number in written}
    sparse(files / "payload_storage/tracker.dat", max(FLAGS_BYTES, points * 20), tracker)
    (files / "vector_storage/vectors/status.dat").write_bytes(len(written).to_bytes(8, "little"))
    with open(files / "mutable_id_tracker.mappings", "ab") as file:
        file.write(b"".join(b"\x01" + number.to_bytes(8, "little") + bytes(4) for number in written))
    versions = {number * VERSION_BYTES: (number + points * second).to_bytes(8, "little") for number in written}
    sparse(files / "mutable_id_tracker.versions", None, versions)


def passage(rng):
    """About half of it text that compresses."""
    words = [b"backup", b"restore", b"point", b"vector", b"payload", b"collection", b"segment", b"snapshot"]
    text = b'{"text":"' + b" ".join(rng.choice(words) for _ in range(40)) + b'","key":"'
    return (text + rng.randbytes(120).hex().encode() + b'"}').ljust(PAYLOAD_BYTES, b"\0")[:PAYLOAD_BYTES]


def sparse(path, size, pieces):
    """Writes pieces where they belong; what is between them stays as it is."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        if size is not None:
            file.truncate(size)
        for at, piece in sorted(pieces.items()):
            file.seek(at)
            file.write(piece)


def pack(home, path):
    """A tar of tars, sparse inside and outside, as the server writes it: entries without owner or time outside."""
    tar = ["tar", "--create", "--sparse", "--format=gnu", "--sort=name", "--owner=0", "--group=0"]
    packed = home.parent / "packed"
    shutil.rmtree(packed, ignore_errors=True)
    (packed / "0/segments").mkdir(parents=True)
    for segment in sorted((home / "0/segments").iterdir()):
        out = packed / f"0/segments/{segment.name}.tar"
        subprocess.run([*tar, "--file", out, "snapshot"], cwd=segment, check=True)
    subprocess.run(["cp", "-r", "--sparse=always", home / "0/wal", packed / "0/wal"], check=True)
    shutil.copy(home / "config.json", packed)
    subprocess.run([*tar, "--mtime=@0", "--file", path, "0", "config.json"], cwd=packed, check=True)
    shutil.rmtree(packed)
