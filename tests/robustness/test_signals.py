"""Real signals at random moments; the sweep of lines (`tests/sweep/test_interrupt_sweep.py`) finds what they miss."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("interrupted.py")

RUNS = 1500 if os.environ.get("SWEEP") == "all" else 15


def test_ctrl_c_at_random_moments() -> None:
    """KeyboardInterrupt ends each of the runs, and `on_close` has been called once for each `on_open`."""
    command = [sys.executable, str(PROGRAM), str(RUNS), "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30 + RUNS, check=False)
    assert result.stderr == ""
    assert re.fullmatch(rf"{RUNS} runs, [0-9]+ connections\n", result.stdout), result.stdout
