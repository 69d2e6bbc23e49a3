"""The request that opens a connection, and what can be read from it.

Nothing here refuses anything: whether a request is acceptable is decided in `handshake`. What a peer has sent is
decoded without ever failing. Each byte of a header is one character (latin-1; RFC 9110 section 5.5 says nothing about
the meaning of those beyond ASCII). Path and query are UTF-8 in percent-encoding; what is not becomes U+FFFD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, final, overload
from urllib.parse import parse_qsl, unquote

from ._foreign import place, quoted
from ._types import Address

__all__ = ["Headers", "OriginPolicy", "Query", "Request", "split_list"]

T = TypeVar("T")


class _MultiMapping(Mapping[str, str]):
    """Names with one value or several: as a mapping it shows the first value of each name."""

    __slots__ = ("_values",)

    _key: Callable[[str], str]
    """What two names have in common that mean the same."""

    def __init__(self, pairs: Iterable[Sequence[str]] = ()) -> None:
        values: dict[str, list[str]] = {}
        for name, value in pairs:
            values.setdefault(self._key(name), []).append(value)
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[self._key(name)][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._key(name) in self._values

    def __eq__(self, other: object) -> bool:
        # The inherited comparison sees first values only.
        return self._values == other._values if isinstance(other, type(self)) else NotImplemented

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[(name, value) for name in self for value in self._values[name]]})"

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str | T) -> str | T: ...
    def get(self, name: str, /, default: object = None) -> object:
        """Return the first value of `name`, or `default`."""
        values = self._values.get(self._key(name))
        return default if values is None else values[0]

    def get_all(self, name: str) -> tuple[str, ...]:
        """Return every value of `name` in the order in which they came; an empty tuple if there is none."""
        return tuple(self._values.get(self._key(name), ()))


@final
class Headers(_MultiMapping):
    """The header lines of a request: names in any case, each with its first value, or all of them by `get_all`.

    Iterating gives each name once, in lower case. Each character of a value stands for one byte.
    """

    __slots__ = ()

    @classmethod
    def _of_lines(cls, lines: bytes) -> Headers:
        """What lines of `name: value` mean, with a line feed between them; in an HTTP/1.0 request there may be none."""
        return cls([line.split(": ", 1) for line in lines.decode("latin-1").split("\n")] if lines else ())

    _key = staticmethod(str.lower)


@final
class Query(_MultiMapping):
    """The decoded fields of a query string: each name with its first value, or all of them by `get_all`."""

    __slots__ = ()

    @staticmethod
    def _key(name: str) -> str:
        return name


@final
class Request:
    """A request for an upgrade, or a plain GET or HEAD.

    Attributes:
      method: as it was sent; upper and lower case differ.
      target: what stands between method and version, as it was sent.
      raw_path: the part of `target` before the query, as it was sent.
      path: `raw_path` with percent-encoding decoded; a `%2F` looks like any other slash here, but not in `segments`.
      query_string: what follows the first `?`, as it was sent.
      host: the host, with its port if it names one, that the request is meant for (RFC 9112 section 3.3); `""` if none.
      path_params: the values of the route's path parameters.
      remote_address: `(host, port)` of the peer, or what else the transport knows; of a proxy if there is one.
      local_address: the same for this side.
      secure: whether the request came over TLS that ended in this process.
      http_version: `"1.1"`, or `"1.0"` for a plain request of an old client or health check.
    """

    __slots__ = (
        "_cookies",
        "_headers",
        "_lines",
        "_query",
        "_state",
        "host",
        "http_version",
        "local_address",
        "method",
        "path",
        "path_params",
        "query_string",
        "raw_path",
        "remote_address",
        "secure",
        "target",
    )

    def __init__(
        self,
        method: str,
        target: str,
        headers: Headers,
        *,
        lines: bytes = b"",
        remote_address: Address = None,
        local_address: Address = None,
        secure: bool = False,
        http_version: str = "1.1",
    ) -> None:
        self.method = method
        self.target = target
        self._headers: Headers | None = headers
        self._lines = lines  # the headers in one piece, where somebody had them
        self.remote_address = remote_address
        self.local_address = local_address
        self.secure = secure
        self.http_version = http_version
        self.path_params: dict[str, Any] = {}
        self._state: dict[str, Any] | None = None
        self._cookies: dict[str, str] | None = None
        self._query: Query | None = None
        authority, self.raw_path, self.query_string = _split_target(target)
        self.path = unquote(self.raw_path)
        self.host = headers.get("host", "") if authority is None else authority

    def __repr__(self) -> str:
        # No query and no headers: they carry secrets, and this ends up in logs.
        return f"<Request {self.method} {quoted(self.path)} from {place(self.remote_address)}>"

    @property
    def headers(self) -> Headers:
        """The header lines."""
        if self._headers is None:
            self._headers = Headers._of_lines(self._lines)
        return self._headers

    @property
    def state(self) -> dict[str, Any]:
        """Whatever middlewares want to hand on."""
        if self._state is None:
            self._state = {}
        return self._state

    def _compact(self) -> None:
        """Keep the headers in one piece until somebody asks for them again: most connections never do."""
        if not self._lines:
            lines = (f"{name}: {value}" for name in self.headers for value in self.headers.get_all(name))
            self._lines = "\n".join(lines).encode("latin-1")
        self._headers = None
        self._cookies = None
        self._query = None

    @property
    def segments(self) -> list[str]:
        """The parts of the path between its slashes, each one decoded by itself: `/a/b%2Fc` gives `["a", "b/c"]`."""
        return [unquote(segment) for segment in self.raw_path[1:].split("/")]

    @property
    def query(self) -> Query:
        """The fields of the query string, decoded as HTML forms are: `+` is a space, fields without `=` are empty."""
        if self._query is None:
            self._query = Query(parse_qsl(self.query_string, keep_blank_values=True))
        return self._query

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies; of several with one name the first, which is the one with the most specific path."""
        if self._cookies is None:
            self._cookies = _parse_cookies(self.headers.get_all("cookie"))
        return self._cookies

    @property
    def origin(self) -> str | None:
        """The `Origin` header: the page that a browser connects from; `None` for most clients that are not browsers."""
        return self.headers.get("origin")

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """The subprotocols that the client offers, each once, in its order of preference."""
        return tuple(dict.fromkeys(split_list(self.headers.get_all("sec-websocket-protocol"))))


OriginPolicy: TypeAlias = str | Sequence[str] | Callable[[Request], bool]
"""The option `origins`: `"same"`, `"*"`, a sequence of origins, or a function that decides about a request."""


def split_list(lines: Iterable[str]) -> list[str]:
    """The elements of a header that is a comma-separated list, over all of its lines (RFC 9110 section 5.6.1)."""
    return [element for line in lines for part in line.split(",") if (element := part.strip(" \t"))]


def _split_target(target: str) -> tuple[str | None, str, str]:
    """Authority (`None` where there is none), path and query of a request target (RFC 9112 section 3.2)."""
    rest, _, query = target.partition("?")
    if rest.startswith("/"):
        return None, rest, query
    _, separator, after = rest.partition("://")
    if not separator:
        return None, rest, query
    authority, _, path = after.partition("/")
    return authority, "/" + path, query


def _parse_cookies(lines: Iterable[str]) -> dict[str, str]:
    cookies: dict[str, str] = {}
    for line in lines:
        for pair in line.split(";"):
            name, separator, value = pair.partition("=")
            if not separator:
                continue
            value = value.strip(" \t")
            if len(value) >= 2 and value[0] == value[-1] == '"':
                value = value[1:-1]
            cookies.setdefault(name.strip(" \t"), value)
    return cookies
