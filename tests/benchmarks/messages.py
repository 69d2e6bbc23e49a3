"""Compressed messages for the load generator: JSON as applications send it, each compressed by itself."""

from __future__ import annotations

import json
import os
import random
import zlib
from collections import defaultdict
from pathlib import Path

__all__ = ["COUNT", "compressed_messages", "document", "write_messages"]

COUNT = 16
"""How many the load generator wants; they have to be of one size."""

TEXT = "the quick brown fox jumps over a lazy dog and then runs home again before it is dark"
WORDS = TEXT.split()


def document(source: random.Random, size: int) -> bytes:
    """A list of records as one JSON text of `size` bytes; what is missing in the end is filled up with words."""
    records: list[object] = []
    while True:
        record = {
            "id": source.randrange(10**6),
            "user": f"user{source.randrange(1000)}",
            "text": " ".join(source.choices(WORDS, k=8)),
            "price": round(source.uniform(1, 1000), 2),
        }
        if len(json.dumps([*records, record, ""])) > size:
            break
        records.append(record)
    missing = size - len(json.dumps([*records, ""]))
    return json.dumps([*records, " ".join(source.choices(WORDS, k=missing))[:missing]]).encode()


def compressed_messages(size: int) -> list[bytes]:
    """So many messages of `size` bytes that compression makes equally long, without the last four bytes."""
    source = random.Random(size)  # the same in every run
    by_length: defaultdict[int, list[bytes]] = defaultdict(list)
    while True:
        stream = zlib.compressobj(6, zlib.DEFLATED, -12)
        message = (stream.compress(document(source, size)) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
        alike = by_length[len(message)]
        alike.append(message)
        if len(alike) == COUNT:
            return alike


def write_messages(path: Path, size: int) -> None:
    """Write them to a file, which is there as a whole or not at all."""
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(b"".join(compressed_messages(size)))
    fresh.rename(path)
