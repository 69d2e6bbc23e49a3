"""Check that the built distributions hold what belongs in them, and nothing else.

    python tests/ci/check_dist.py DIST LIST

DIST is the folder with one sdist and one wheel, LIST a file with the paths of the project's files, one in a line, as
`git ls-files` prints them.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import zipfile
from pathlib import Path

__all__ = ["check_sdist", "check_wheel"]

# What the sdist leaves out of the files of the project: they serve the repository, not its users.
_REPOSITORY_ONLY = {".ci/run", ".editorconfig", ".gitattributes"}
# What building adds.
_GENERATED = {"PKG-INFO"}


def check_sdist(names: set[str], project: set[str]) -> list[str]:
    """What is wrong with an sdist that holds `names` (relative to its one folder), given the files of the project."""
    expected = (project - _REPOSITORY_ONLY) | _GENERATED
    return [f"sdist: {name} does not belong in it" for name in sorted(names - expected)] + [
        f"sdist: {name} is missing" for name in sorted(expected - names)
    ]


def check_wheel(names: set[str], project: set[str]) -> list[str]:
    """What is wrong with a wheel that holds `names`: the package as it is in the project, and metadata."""
    package = {name for name in project if name.startswith("trio_crowws/")}
    held = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    problems = [f"wheel: {name} does not belong in it" for name in sorted(held - package)]
    problems += [f"wheel: {name} is missing" for name in sorted(package - held)]
    for wanted in ("METADATA", "entry_points.txt", "licenses/LICENSE"):
        if not any(name.endswith(f".dist-info/{wanted}") for name in names):
            problems.append(f"wheel: no {wanted} in its metadata")
    return problems


def main() -> int:
    """Print the problems; exit status 1 when there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path)
    parser.add_argument("list", type=Path)
    given = parser.parse_args()
    project = set(given.list.read_text(encoding="utf-8").splitlines())
    (sdist,), (wheel,) = given.dist.glob("*.tar.gz"), given.dist.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.partition("/")[2] for member in archive if not member.isdir()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if not name.endswith("/")}
    problems = check_sdist(in_sdist, project) + check_wheel(in_wheel, project)
    print("\n".join(problems) or f"{sdist.name}: {len(in_sdist)} files, {wheel.name}: {len(in_wheel)} files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
