"""Files that change in typical ways."""

import json
import random
from pathlib import Path

from .data import ROWS_PER_SCALE, SEED

VALUE_BYTES = 4
# The last byte of a little-endian float32: sign and most of the exponent, as numbers around 0.1 have them.
EXPONENTS = bytes([0x3C, 0x3D, 0x3D, 0x3E, 0xBC, 0xBD, 0xBD, 0xBE] * 32)


def delete_and_append(scale):
    """As an event table ages: the oldest rows go, new ones come, and the table is vacuumed."""
    rows = scale * ROWS_PER_SCALE
    moved = rows // 20
    return [
        f"DELETE FROM pgbench_accounts WHERE aid <= {moved}",
        "INSERT INTO pgbench_accounts SELECT aid, aid % " + str(scale) + " + 1, 0, ''"
        f" FROM generate_series({rows + 1}, {rows + moved}) aid",
        "VACUUM pgbench_accounts",
    ]


def floats(rng, count):
    """The bytes of that many float32 numbers: three noisy bytes and one of few values."""
    noise = bytearray(rng.randbytes(count * VALUE_BYTES))
    noise[3::VALUE_BYTES] = noise[3::VALUE_BYTES].translate(EXPONENTS)
    return bytes(noise)


def make_vectors(path, size, dimensions):
    rng, piece = random.Random(SEED), 1 << 18
    whole = size // (dimensions * VALUE_BYTES) * dimensions
    with open(path, "wb") as file:
        for start in range(0, whole, piece):
            file.write(floats(rng, min(piece, whole - start)))


def overwrite_vectors(path, share, dimensions, seed=SEED + 1):
    """In place, one vector here and one there."""
    rng, length = random.Random(seed), dimensions * VALUE_BYTES
    count = path.stat().st_size // length
    with open(path, "r+b") as file:
        for number in rng.sample(range(count), max(1, round(count * share))):
            file.seek(number * length)
            file.write(floats(rng, dimensions))


def make_model_file(path, size):
    """Nothing of it compresses."""
    rng = random.Random(SEED + 2)
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(rng.randbytes(min(1 << 20, size - start)))


def make_small_files(home, count):
    """A hundred in a directory, 1 to 40 KB, nine of ten of them text."""
    rng = random.Random(SEED)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(3000)]
    for number in range(count):
        path = small_file(home, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(small_body(rng, words, number))


def change_small_files(home, count, share, seed=SEED + 3):
    """Of the files that change, three in five get a new passage inside, one grows, and one is new."""
    rng = random.Random(seed)
    for number in rng.sample(range(count), round(count * share)):
        path, passage = small_file(home, number), json.dumps(rng.randbytes(100).hex()).encode()
        body = path.read_bytes()
        if number % 5 < 3:
            at = rng.randrange(len(body))
            path.write_bytes(body[:at] + passage + body[at + 100 :])
        elif number % 5 == 3:
            path.write_bytes(body + passage)
        else:
            path.with_suffix(".new").write_bytes(body[: len(body) // 2] + rng.randbytes(2000))


def small_file(home, number):
    return Path(home, f"d{number // 100:05}", f"f{number:07}.json")


def small_body(rng, words, number):
    if number % 10 == 0:
        return rng.randbytes(rng.randint(1000, 20_000))
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(rng.randint(3, 120))]
    return json.dumps([{"id": rng.getrandbits(32), "text": text} for text in texts]).encode()
