"""The echo example on a machine without numpy, that is, without the extra `speed`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.modules["numpy"] = None  # type: ignore[assignment]  # how Python itself marks what cannot be imported
    runpy.run_path(str(Path(__file__).parents[3] / "examples/echo/server.py"), run_name="__main__")
