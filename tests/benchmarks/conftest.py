"""The marker `benchmark`: what carries it takes minutes and both processors, and runs only when it is asked for."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "benchmark: runs the benchmarks, which need a C compiler")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the benchmarks out, unless `-m` says something about them."""
    if "benchmark" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("benchmark") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.get_closest_marker("benchmark") is None]
