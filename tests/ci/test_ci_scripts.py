"""The scripts of CI notice what they are there to notice."""

from __future__ import annotations

import pytest

from ci.check_dist import check_sdist, check_wheel
from ci.readme import commands

PROJECT = {"pyproject.toml", "tests/test_it.py", "trio_crowws/__init__.py", "trio_crowws/py.typed", ".ci/run"}
SDIST = (PROJECT - {".ci/run"}) | {"PKG-INFO"}
METADATA = {f"trio_crowws-1.dist-info/{name}" for name in ("METADATA", "entry_points.txt", "licenses/LICENSE")}
WHEEL = {"trio_crowws/__init__.py", "trio_crowws/py.typed"} | METADATA


def test_the_commands_are_the_first_lines_of_the_first_two_shell_blocks() -> None:
    """Blocks in other languages, and what stands below the first line, are passed over."""
    readme = (
        "```python\n1\n```\n```sh\npython examples/chat/server.py\nmore\n```\n```sh\npytest -x\n```\n```sh\nls\n```\n"
    )
    assert commands(readme) == ("python examples/chat/server.py", "pytest -x")


@pytest.mark.parametrize("readme", ["", "```sh\npytest\n```\n```sh\npython examples/chat/server.py\n```\n"])
def test_other_commands_are_refused(readme: str) -> None:
    """A README without the two commands, or with them in another order, is an error."""
    with pytest.raises(ValueError, match="expected the command of the chat"):
        commands(readme)


def test_complete_distributions_pass() -> None:
    """There is nothing to say about distributions that hold what belongs in them."""
    assert check_sdist(SDIST, PROJECT) + check_wheel(WHEEL, PROJECT) == []


def test_a_stray_file_in_the_sdist_is_reported() -> None:
    """A file that is not part of the project does not get into an sdist unnoticed."""
    assert check_sdist(SDIST | {".venv/bin/pip"}, PROJECT) == ["sdist: .venv/bin/pip does not belong in it"]


def test_a_file_that_the_sdist_lacks_is_reported() -> None:
    """Nor is a file of the project left out unnoticed."""
    assert check_sdist(SDIST - {"tests/test_it.py"}, PROJECT) == ["sdist: tests/test_it.py is missing"]


def test_a_stray_file_in_the_wheel_is_reported() -> None:
    """Tests are not installed beside the package."""
    assert check_wheel(WHEEL | {"tests/test_it.py"}, PROJECT) == ["wheel: tests/test_it.py does not belong in it"]


@pytest.mark.parametrize("name", ["trio_crowws/py.typed", "trio_crowws-1.dist-info/licenses/LICENSE"])
def test_a_file_that_the_wheel_lacks_is_reported(name: str) -> None:
    """The marker of types, the licence and all modules are in the wheel."""
    assert len(check_wheel(WHEEL - {name}, PROJECT)) == 1
