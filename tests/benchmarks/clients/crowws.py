"""This framework's client; with `--without-numpy` as on a machine where the extra `speed` is not installed."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager

from .common import Echoes, Settings, run

if "--without-numpy" in sys.argv:
    sys.argv.remove("--without-numpy")
    sys.modules["numpy"] = None  # type: ignore[assignment]  # how Python itself marks what cannot be imported

from trio_crowws import connect


def open_connection(settings: Settings) -> AbstractAsyncContextManager[Echoes]:
    return connect(settings.url)


if __name__ == "__main__":
    run(open_connection)
