"""Sphinx configuration: `python -m sphinx -n -W -b html docs docs/_build/html`, which needs no network.

The reference pages are made from the docstrings of the package in this checkout, so the path below is absolute: Sphinx
may be started from any folder.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import sphinx
from sphinx.application import Sphinx
from sphinx.ext import napoleon

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "trio_crowws"
author = "the trio_crowws authors"
copyright = "the trio_crowws authors"  # noqa: A001 - the name is Sphinx's

extensions = [
    "sphinx.ext.autodoc",
    "sphinxcontrib_trio",
    "myst_parser",
    "sphinx_copybutton",
]

# Links into the documentation of Python and Trio need the network, so they are an extra that a publisher asks for.
if os.environ.get("DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
    }

exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "trio_crowws"
html_copy_source = False

# The docstrings use single backticks for code.
default_role = "code"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
if sphinx.version_info >= (9,):
    # sphinxcontrib-trio hooks the documenter classes that Sphinx 9 keeps behind this switch; without it the
    # reference shows `async with f()` as `f()`.
    autodoc_use_legacy_class_based = True

# The prompts are not part of what a reader wants to paste.
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

nitpicky = True
# Names that are documented elsewhere. Each one is met in a signature; the links need the network (see above).
nitpick_ignore = [
    # The standard library and Trio.
    ("py:class", "collections.abc.AsyncGenerator"),  # testing.connect
    ("py:class", "collections.abc.Awaitable"),  # Connection.start_soon
    ("py:class", "collections.abc.Callable"),  # App.http, Route.onopen and its sisters, the option origins
    ("py:class", "collections.abc.Iterable"),  # exclude= of App.publish and Room.publish
    ("py:class", "collections.abc.Mapping"),  # headers of Accept, Reject, Response and connect; Stats.closed
    ("py:class", "collections.abc.Sequence"),  # the same headers; App.routes, App.serve_listeners
    ("py:class", "contextlib.AbstractAsyncContextManager"),  # connect, connect_stream
    ("py:class", "os.PathLike"),  # unix= of App.serve and App.run
    ("py:class", "random.Random"),  # rng= of keep_connected
    ("py:class", "ssl.SSLContext"),  # ssl_context= of App.serve, App.run and connect
    ("py:class", "trio.CancelScope"),  # Connection.cancel_scope, Server.route_scope
    ("py:class", "trio.TaskStatus"),  # App.serve, App.serve_listeners
    ("py:class", "trio.abc.HalfCloseableStream"),  # testing.FaultyStream
    ("py:class", "trio.abc.Listener"),  # App.serve_listeners
    ("py:class", "trio.abc.Stream"),  # App.serve_stream, connect_stream, testing.shake_hands
    ("py:exc", "trio.BusyResourceError"),  # Connection.receive
    # wsproto, in testing.Peer.receive_event.
    ("py:class", "wsproto.events.Ping"),
    ("py:class", "wsproto.events.Pong"),
    # Type variables and their like, so there is nothing to link to.
    ("py:class", "AbstractAsyncContextManager"),  # what connect returns, and connect= of keep_connected takes
    ("py:class", "trio_crowws._client.supervisor.T"),  # keep_connected returns what the handler returns
    ("py:class", "trio_crowws._site.F"),  # a decorator returns the function that it was given
    ("py:class", "trio_crowws._route.F"),
    # The protocol that lets a connection name the result of publish; documented as PublishResult.
    ("py:class", "trio_crowws._session.connection.PublishResult"),
]

# ---------------------------------------------------------------------------------------------- docstrings

_SECTIONS = napoleon.Config(napoleon_google_docstring=True, napoleon_use_ivar=True)
_SEVERAL_NAMES = re.compile(r"( +)(\w+(?:, \w+)+): (.+)")

# Objects of these classes come from the framework, so a constructor in the reference would mislead.
_NOT_MADE_BY_USERS = frozenset(
    {
        "CloseCode",
        "CloseFrame",
        "CloseInfo",
        "Connection",
        "Headers",
        "LinkPhase",
        "LinkState",
        "Options",
        "Peer",
        "PublishResult",
        "Query",
        "Request",
        "Room",
        "Route",
        "Server",
        "ServerResponse",
        "State",
        "Stats",
    }
)


def read_sections(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """The Google style of the docstrings, read by Napoleon.

    This is what its extension does, but for two things. A line of several names (`a, b: text`) is taken for each of
    them. And the first line of a property is text: Napoleon takes what stands before its colon for a type.
    """
    single: list[str] = []
    for line in lines:
        several = _SEVERAL_NAMES.fullmatch(line)
        single += [f"{several[1]}{one}: {several[3]}" for one in several[2].split(", ")] if several else [line]
    kind = "method" if what in ("attribute", "property") else what
    lines[:] = napoleon.GoogleDocstring("\n".join(single), _SECTIONS, app, kind, name, obj, options).lines()


def hide_constructor(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """No arguments behind the name of a class that users do not make."""
    return ("", None) if what == "class" and name.rpartition(".")[2] in _NOT_MADE_BY_USERS else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx, which takes this file for an extension too."""
    app.connect("autodoc-process-docstring", read_sections)
    app.connect("autodoc-process-signature", hide_constructor)
