"""Settings of the whole suite; fixtures live beside the tests that use them."""

from __future__ import annotations

import os

from hypothesis import settings

# The machine may be slow or shared, so no example is judged by its time. In CI the examples are the same in every run:
# a failure there is reproduced here with CI=true.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
