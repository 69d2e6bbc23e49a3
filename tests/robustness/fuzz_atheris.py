"""Fuzzing guided by coverage, for hours: the same targets as in `test_fuzz.py`, started by hand.

    pip install atheris
    PYTHONPATH=.:tests python tests/robustness/fuzz_atheris.py handshake -max_total_time=3600 corpus/handshake
    PYTHONPATH=.:tests python tests/robustness/fuzz_atheris.py frames -max_total_time=3600 corpus/frames

Everything behind the name of the target is for libFuzzer, as the folder in which it keeps what it has found
interesting. What breaks a target is written to a file `crash-...`; give that file in place of the folder to see it
again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

__all__ = ["frames", "handshake", "main"]

# Not an import statement: it is not among the packages that the tests need, and type checkers would miss it.
atheris = import_module("atheris")

with atheris.instrument_imports(include=["trio_crowws", "wsproto", "h11"]):
    from robustness.targets import PATHS, attack, check_frames, check_handshake, upgrade_to


def pieces_of(data: bytes) -> list[bytes]:
    """The first byte says into how many pieces the rest is cut."""
    if not data:
        return []
    size = max(1, len(data) // (1 + data[0] % 8))
    return [data[start : start + size] for start in range(1, len(data), size)]


def handshake(data: bytes) -> None:
    check_handshake(attack(pieces_of(data)))


def frames(data: bytes) -> None:
    path = PATHS[data[0] % len(PATHS)] if data else PATHS[0]
    check_frames(attack([upgrade_to(path), *pieces_of(data[1:])]))


TARGETS: dict[str, Callable[[bytes], None]] = {"handshake": handshake, "frames": frames}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_atheris.py {'|'.join(TARGETS)} [options of libFuzzer] [corpus]")
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
