"""The public face, and the layers behind it: what is there, what is documented, and who may import whom."""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trio_crowws
import trio_crowws.errors
import trio_crowws.testing
import trio_crowws.typing

PACKAGE = Path(trio_crowws.__file__).parent
PUBLIC = [trio_crowws, trio_crowws.testing]


def test_the_list_of_names() -> None:
    """These names are public; a change of this list is a change for every user."""
    assert trio_crowws.__all__ == [
        "Accept",
        "App",
        "Backoff",
        "CloseCode",
        "CloseFrame",
        "CloseInfo",
        "CloseTimeout",
        "ConnectFailed",
        "Connection",
        "ConnectionClosed",
        "ConnectionClosedError",
        "ConnectionClosedOK",
        "ConnectionLost",
        "CrowWSError",
        "Deflate",
        "Handler",
        "HandlerError",
        "HandshakeError",
        "HandshakeTimeout",
        "Headers",
        "HeartbeatTimeout",
        "InvalidHandshake",
        "InvalidURL",
        "InvalidUTF8",
        "LinkPhase",
        "LinkState",
        "Options",
        "PayloadTooBig",
        "ProtocolError",
        "ProxyError",
        "PublishResult",
        "Query",
        "Reject",
        "Rejected",
        "Request",
        "Response",
        "Room",
        "Route",
        "Server",
        "ServerResponse",
        "SlowConsumer",
        "State",
        "Stats",
        "connect",
        "connect_stream",
        "is_final",
        "keep_connected",
    ]
    assert trio_crowws.testing.__all__ == ["FaultyStream", "Peer", "PeerClosed", "Refused", "connect", "shake_hands"]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_nothing_else_is_public(module: ModuleType) -> None:
    """What is not in the list begins with an underscore, is a submodule, or is what every module has."""
    if module is trio_crowws:
        others = {name for name in vars(module) if not name.startswith("_")} - set(module.__all__)
        assert {name for name in others if not isinstance(getattr(module, name), ModuleType)} == {"annotations"}
        assert "__version__" in vars(module)


def test_all_errors_are_public() -> None:
    """Every exception of the tree can be imported from the package, and the tree stands at the top of its module."""
    errors = importlib.import_module("trio_crowws.errors")
    assert set(errors.__all__) < set(trio_crowws.__all__)
    for name in errors.__all__:
        assert getattr(trio_crowws, name) is getattr(errors, name)
        assert issubclass(getattr(errors, name), trio_crowws.CrowWSError)
        assert name in (errors.__doc__ or "")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_exports(path: Path) -> None:
    """A module has a docstring and a list of what others may import; both are true."""
    tree = ast.parse(path.read_text())
    if not tree.body:
        assert path.name == "__init__.py"
        return
    assert ast.get_docstring(tree)
    if path.name == "__main__.py":
        return
    module = importlib.import_module(_module_name(path))
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name)


def test_the_version() -> None:
    """The version is a plain one, and the same as the one in pyproject.toml."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", trio_crowws.__version__)
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    assert f'version = "{trio_crowws.__version__}"' in project or 'dynamic = ["version"]' in project


# Documentation


def public_names() -> Iterator[tuple[str, Any]]:
    for module in PUBLIC:
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


TYPES = ["Address", "BytesLike", "HeadersLike", "Message", "MessageLike", "OriginPolicy", "SlowPolicy"]


def test_the_list_of_types() -> None:
    """These are the names for types that signatures share; each is in the reference."""
    assert trio_crowws.typing.__all__ == TYPES
    reference = (PACKAGE.parent / "docs" / "reference" / "typing.md").read_text()
    assert re.findall(r"py:data:: (\w+)", reference) == TYPES


def annotated() -> Iterator[tuple[str, Any]]:
    """Every public function and class, and what the public classes have by way of this package."""
    for module in (trio_crowws, trio_crowws.errors, trio_crowws.testing, trio_crowws.typing):
        yield module.__name__, module
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield name, inspect.unwrap(value)
            for base in value.__mro__ if inspect.isclass(value) else ():
                for member, raw in vars(base).items() if base.__module__.startswith("trio_crowws") else ():
                    function = raw.fget if isinstance(raw, property) else getattr(raw, "__func__", raw)
                    if inspect.isfunction(function):
                        yield f"{name}.{member}", inspect.unwrap(function)


ANNOTATED = dict(annotated())


@pytest.mark.parametrize("value", ANNOTATED.values(), ids=ANNOTATED)
def test_annotations_can_be_resolved(value: Any) -> None:
    """`typing.get_type_hints` works on all that is public, as tools that read annotations need it."""
    hints = typing.get_type_hints(value, include_extras=True)
    assert set(hints) >= set(getattr(value, "__annotations__", {}))


MEMBERS = (property, staticmethod, classmethod, functools.cached_property)


def documented_members() -> Iterator[tuple[str, Any]]:
    """Public methods and properties of the public classes, as far as this package defines them."""
    for qualified, value in public_names():
        if not inspect.isclass(value) or issubclass(value, enum.Enum):
            continue
        for cls in value.__mro__:
            if not cls.__module__.startswith("trio_crowws"):
                continue
            for name, member in vars(cls).items():
                if not name.startswith("_") and (isinstance(member, MEMBERS) or inspect.isfunction(member)):
                    yield f"{qualified}.{name}", member


EVERYTHING = {name: (name, value) for name, value in (*public_names(), *documented_members())}


@pytest.mark.parametrize(("name", "value"), EVERYTHING.values(), ids=EVERYTHING)
def test_every_public_name_has_a_docstring(name: str, value: Any) -> None:
    """Whatever users see says what it is, in a sentence of its own."""
    doc = inspect.getdoc(value.func if isinstance(value, functools.cached_property) else value)
    assert doc
    first = doc.splitlines()[0]
    assert len(first) > 5
    if inspect.isclass(value) and issubclass(value, Exception):
        assert doc != inspect.getdoc(value.__mro__[1])
    if isinstance(value, type) and dataclasses.is_dataclass(value):
        assert not doc.startswith(f"{value.__name__}(")  # what dataclass would make up


REFERENCE = PACKAGE.parent / "docs" / "reference"


def referenced(name: str) -> set[str] | None:
    """What the reference shows of the class `name`; `None` for all of it."""
    text = "\n".join(path.read_text() for path in REFERENCE.glob("*.md"))
    shown = set(re.findall(rf"auto(?:method|property|attribute):: {name}\.(\w+)", text))
    for options in re.findall(rf"auto(?:class|exception):: {name}\n((?:   +.*\n)*)", text):
        members = re.search(r":members:(.*(?:\n +[^:\n]*)*)", options)
        if members is not None and not members[1].strip():
            return None
        shown |= set(re.findall(r"\w+", members[1])) if members is not None else set()
    return shown


def offered(cls: type) -> set[str]:
    """The public names of an object of `cls`, as far as this package gives them: what autocompletion offers."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("trio_crowws"):
            names |= {*vars(base), *getattr(base, "__slots__", ())}
            names |= set(re.findall(r"^ {8}self\.(\w+)(?:: [^=]*)? = ", inspect.getsource(base), re.MULTILINE))
    return {name for name in names if not name.startswith("_")}


PUBLIC_CLASSES = [
    getattr(trio_crowws, name) for name in trio_crowws.__all__ if inspect.isclass(getattr(trio_crowws, name))
]


@pytest.mark.parametrize("cls", PUBLIC_CLASSES, ids=lambda cls: cls.__name__)
def test_what_is_offered_is_documented(cls: type) -> None:
    """A public name of a public object is in the reference or the docstring of its class; others have an underscore."""
    shown = referenced(cls.__name__)
    if shown is not None:
        docs = "\n".join(base.__doc__ or "" for base in cls.__mro__ if base.__module__.startswith("trio_crowws"))
        told = " ".join([*re.findall(r"^ {2,}([\w, ]+): ", docs, re.MULTILINE), *re.findall(r"`\w+`", docs)])
        assert offered(cls) - shown - set(re.findall(r"\w+", told)) == set()


def test_every_option_is_documented() -> None:
    """Every field of Options and of Deflate is followed by a sentence."""
    check_fields(trio_crowws.Options, PACKAGE / "_options.py")
    check_fields(trio_crowws.Deflate, PACKAGE / "_deflate.py")


def check_fields(kind: Any, path: Path) -> None:
    tree = ast.parse(path.read_text())
    [options] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
    fields = {field.name for field in dataclasses.fields(kind)}
    documented = {
        field.target.id
        for field, text in zip(options.body, options.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
    }
    assert documented == fields


WAITING = {
    trio_crowws.App: ["serve", "serve_listeners", "serve_stream"],
    trio_crowws.Server: ["drain", "aclose", "wait_closed"],
    trio_crowws.Connection: [
        "send",
        "send_text",
        "send_binary",
        "send_json",
        "receive",
        "ping",
        "close",
        "wait_closed",
    ],
}


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, names in WAITING.items() for name in names])
def test_async_methods_say_what_cancellation_does(cls: type, name: str) -> None:
    """The docstring of every method that waits says what cancelling it does, or points to one that says it."""
    method = getattr(cls, name)
    assert inspect.iscoroutinefunction(method)
    assert re.search("Cancell|see `send`|`drain`|Wait until", inspect.getdoc(method) or "")


# Foreign names


FOREIGN = ("h11", "wsproto")


def test_no_foreign_class_is_public() -> None:
    """No public name comes from h11 or wsproto, nor does a base class or an annotation of one."""
    for name, value in [*public_names(), *documented_members()]:
        assert not getattr(value, "__module__", "").startswith(FOREIGN), name
        for cls in getattr(value, "__mro__", ()):
            assert not cls.__module__.startswith(FOREIGN), name
        if name.startswith("trio_crowws.testing"):
            continue  # its peer is a wsproto client and hands out wsproto's ping and pong
        function = value.fget if isinstance(value, property) else value
        for annotation in getattr(function, "__annotations__", {}).values():
            assert not re.search(r"\b(h11|wsproto)\b", str(annotation)), name


def test_private_names_of_others_are_not_used() -> None:
    """Of h11, wsproto, trio and the standard library only public names are used."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in (*FOREIGN, "trio", "ssl", "socket"):
                modules = [ast.unparse(node)]
            for module in modules:
                parts = [part for part in module.split(".") if part.startswith("_") and part != "__future__"]
                assert not parts, f"{path}: {module}"


# Layers

LAYERS = [
    ["_foreign"],
    ["_log"],
    ["_types", "_request", "_response", "errors", "typing", "_closeinfo", "_copying", "_deflate", "_options"],
    ["_protocol"],
    ["_transport"],
    ["_session"],
    ["_client"],
    ["_app", "_admission", "_listeners", "_rooms", "_route", "_running", "_server", "_site", "_stats", "_upgrade"],
    ["__init__"],
    ["_testing"],
    ["_cli", "cli", "testing"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    """The layer of a module of this package."""
    parts = module.split(".")[1:]
    return LEVEL[parts[0] if parts else "__init__"]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """What a module imports when it runs, as module and names; imports inside functions too."""
    package = _module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()

    def walk(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
        for child in ast.iter_child_nodes(node):
            if _is_type_checking(child):
                assert isinstance(child, ast.If)
                for other in child.orelse:
                    yield from walk(other)
            elif isinstance(child, ast.Import):
                yield from ((alias.name, []) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                names = [alias.name for alias in child.names]
                yield ".".join([*base, *([child.module] if child.module else [])]), names
            else:
                yield from walk(child)

    yield from walk(ast.parse(path.read_text()))


def own_imports(path: Path) -> Iterator[str]:
    """The modules of this package that a module imports when it runs."""
    for module, names in imports(path):
        if module.split(".")[0] != "trio_crowws":
            continue
        for name in names or [""]:
            submodule = Path(PACKAGE.parent, *module.split("."), f"{name}.py")
            yield f"{module}.{name}" if name and submodule.exists() else module


def test_every_module_has_a_layer() -> None:
    """There is no module that the rule of the layers does not know."""
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")} == set(LEVEL)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_never_climb(path: Path) -> None:
    """A module imports its own layer and lower ones, never a higher one."""
    mine = _module_name(path)
    for other in own_imports(path):
        assert layer(other) <= layer(mine), f"{mine} imports {other}"


def test_imports_have_no_circle() -> None:
    """No module imports itself by way of others."""
    graph = {_module_name(path): set(own_imports(path)) for path in PACKAGE.rglob("*.py")}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", sorted((PACKAGE / "_protocol").glob("*.py")), ids=lambda path: path.name)
def test_the_protocol_knows_no_trio(path: Path) -> None:
    """The protocol layer is bytes in, bytes out: it imports neither Trio nor anything that does."""
    for module, _ in imports(path):
        assert module.split(".")[0] not in ("trio", "socket", "select", "ssl", "asyncio")


def test_the_lower_layers_run_without_trio() -> None:
    """Errors, options and the protocol layer can be imported where Trio cannot."""
    program = """
import importlib, sys, types
sys.modules["trio"] = None
package = types.ModuleType("trio_crowws")
package.__path__ = [sys.argv[1]]
sys.modules["trio_crowws"] = package
for name in sys.argv[2:]:
    importlib.import_module("trio_crowws." + name)
"""
    protocol = [f"_protocol.{path.stem}" for path in (PACKAGE / "_protocol").glob("[a-z]*.py")]
    names = ["_foreign", "_log", "errors", "_options", "_closeinfo", "_deflate", *protocol]
    result = subprocess.run(
        [sys.executable, "-c", program, str(PACKAGE), *names], capture_output=True, text=True, timeout=20, check=False
    )
    assert result.stderr == ""
    assert result.returncode == 0


def test_only_the_protocol_layer_and_the_kit_know_h11_and_wsproto() -> None:
    """What another library is used for stays behind the protocol layer; the test kit is a client of its own."""
    for path in PACKAGE.rglob("*.py"):
        if any(module.split(".")[0] in FOREIGN for module, _ in imports(path)):
            assert path.parent.name in ("_protocol", "_testing"), path


def test_there_is_one_way_to_the_log() -> None:
    """No module but the guard of the log gets at the logger of the package."""
    for path in PACKAGE.rglob("*.py"):
        assert path.name == "_log.py" or 'getLogger("trio_crowws' not in path.read_text(), path


def test_the_package_is_typed() -> None:
    """The marker that tells type checkers to look at the annotations is there."""
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    """A file has 550 lines at most."""
    assert len(path.read_text().splitlines()) <= 550
