"""The compressed messages of the load generator: any server can read them, in any order."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from benchmarks.messages import COUNT, compressed_messages, write_messages


@pytest.mark.parametrize("size", [200, 1024])
def test_messages(size: int) -> None:
    """They are different JSON texts of that size, compressed to one length, and each stands for itself."""
    messages = compressed_messages(size)
    assert len(set(messages)) == len(messages) == COUNT
    assert len({len(message) for message in messages}) == 1
    assert len(messages[0]) < size
    for message in messages:
        text = zlib.decompressobj(-12).decompress(message + b"\x00\x00\xff\xff")
        assert len(text) == size
        assert isinstance(json.loads(text), list)


def test_a_file_of_messages(tmp_path: Path) -> None:
    """The load generator gets them one behind the other."""
    path = tmp_path / "messages"
    write_messages(path, 300)
    assert path.read_bytes() == b"".join(compressed_messages(300))
    assert [each.name for each in tmp_path.iterdir()] == ["messages"]
