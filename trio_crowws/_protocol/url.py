"""The URLs of a client: `ws:`, `wss:` (RFC 6455 section 3), `ws+unix:`, and the `http:` of a proxy.

    ws://host[:port][/path][?query]
    wss://host[:port][/path][?query]
    ws+unix:///path/of/the/socket[:/path][?query]

`urllib.parse` is not used to take them apart, because it drops line ends and tabs without a word, and does not say what
is wrong with the rest.

Decisions where the standards leave a choice
* A user name in the URL is refused: RFC 6455 has none, and a password has no place where URLs are shown and logged.
* A host beyond ASCII is looked up and sent in its ASCII form (IDNA 2008, with the mapping of UTS 46).
* What is beyond ASCII in path and query, or must not stand in a URI, is percent-encoded; but a space, which is often a
  mistake, and control characters are refused.
* The zone of an IPv6 address (`[fe80::1%25eth0]`, RFC 6874) is for this machine only and is never sent. A redirect
  within the link keeps it.
* The path of a Unix socket ends at the first colon; in it, as in a path, a colon is `%3A`. One in the abstract
  namespace of Linux, which has no path, is written `/%00name`; no path holds a NUL.
"""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv6Address
from typing import Final
from urllib.parse import quote, unquote, urljoin

import idna

from .._foreign import quoted
from ..errors import InvalidURL

__all__ = ["Proxy", "Target", "parse_proxy", "parse_resource", "parse_url", "redirected"]

_DEFAULT_PORTS: Final[Mapping[str, int]] = {"ws": 80, "wss": 443, "http": 80}

_SECRET = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*:(?://)?|//)?.*@", re.DOTALL)
_SPLIT = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<rest>.*)", re.DOTALL)
_PORT = re.compile(r"[0-9]{1,5}")
_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_ZONE = re.compile(r"[A-Za-z0-9._~-]+")
_BAD = re.compile(r"[\x00-\x20\x7f-\x9f\ud800-\udfff]")
_KEPT: Final = "%/?:@!$&'()*+,;=-._~[]|"  # what need not be encoded in path and query (RFC 3986), and is not harmful
_MAX_NAME: Final = 253

_LOCATION = re.compile(r"(?P<start>(?:[A-Za-z][A-Za-z0-9+.-]*:)?//)(?P<authority>[^/?]*)(?P<rest>.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect, and what to ask for.

    Attributes:
      scheme: `"ws"`, `"wss"` or `"ws+unix"`.
      host: a name in ASCII or an address, without brackets; `"localhost"` for a Unix socket.
      zone: of an IPv6 address, or `""`.
      port: 0 for a Unix socket.
      unix: path of the Unix socket, or its name behind a NUL; otherwise `None`.
      resource: path and query.
    """

    scheme: str
    host: str
    zone: str
    port: int
    unix: str | None
    resource: str

    @property
    def secure(self) -> bool:
        """Whether it is TLS."""
        return self.scheme == "wss"

    @property
    def dialled(self) -> str:
        """The host as the system's resolver takes it."""
        return f"{self.host}%{self.zone}" if self.zone else self.host

    @property
    def server_hostname(self) -> str:
        """The host as a certificate has it."""
        return self.host.rstrip(".")

    @property
    def authority(self) -> str:
        """The value of `Host`: without the port where that is the scheme's own (RFC 9110 section 4.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS.get(self.scheme, 0) else f"{host}:{self.port}"

    @property
    def tunnel(self) -> str:
        """What a proxy is asked to connect to, always with the port (RFC 9110 section 9.3.6)."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
      host: as in `Target`.
      zone: as in `Target`.
      port: its port.
      authorization: the value of `Proxy-Authorization`, or `None`.
    """

    host: str
    zone: str
    port: int
    authorization: str | None

    @property
    def dialled(self) -> str:
        """The host as the system's resolver takes it."""
        return f"{self.host}%{self.zone}" if self.zone else self.host

    def __repr__(self) -> str:
        return f"<Proxy {self}>"

    def __str__(self) -> str:
        # Without the credentials: this ends up in errors and logs.
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def parse_url(url: str) -> Target:
    """Take a URL apart.

    Raises:
      TypeError: it is not a str.
      InvalidURL: it is not one of the three forms.
    """
    scheme, authority, rest = _split(url, "the URL", "ws://host:port/path")
    if scheme == "ws+unix":
        return _parse_unix(url, authority, rest)
    if scheme not in ("ws", "wss"):
        raise InvalidURL(f"the URL {_plain(url)} must begin with ws://, wss:// or ws+unix://")
    if "@" in authority:
        raise InvalidURL(
            f"the URL {_plain(url)} holds a user name; send an Authorization header instead: headers={{...}}"
        )
    host, zone, port = _parse_authority(url, authority, _DEFAULT_PORTS[scheme])
    return Target(scheme, host, zone, port, None, _resource(rest))


def parse_resource(path: str) -> str:
    """Path and query as a client sends them which was given them without a URL around.

    Raises:
      TypeError: it is not a str.
      InvalidURL: it holds what a URL must not hold.
    """
    if not isinstance(path, str):
        raise TypeError(f"the path must be a str, not {type(path).__name__}")
    _refuse_bad(path, "the path")
    _refuse_fragment(path, "the path")
    return _resource(path) if path[:1] in ("", "/", "?") else quote(path, safe=_KEPT)


def parse_proxy(url: str) -> Proxy:
    """Take the URL of a proxy apart: `http://[user[:password]@]host[:port]`.

    Raises:
      TypeError: it is not a str.
      InvalidURL: it is something else. What it says does not show the password.
    """
    scheme, authority, rest = _split(url, "the URL of the proxy", "http://host:port")
    if scheme != "http":
        raise InvalidURL(f"the URL of the proxy {_plain(url)} must begin with http://")
    if rest not in ("", "/"):
        raise InvalidURL(f"the URL of the proxy {_plain(url)} must not have a path")
    userinfo, at, authority = authority.rpartition("@")
    host, zone, port = _parse_authority(url, authority, _DEFAULT_PORTS[scheme])
    if not at:
        return Proxy(host, zone, port, None)
    user, _, password = userinfo.partition(":")
    user, password = unquote(user), unquote(password)
    if ":" in user:  # RFC 7617 section 2: what stands before the first colon is the user
        raise InvalidURL(f"the user name in the URL of the proxy {_plain(url)} holds a colon")
    credentials = base64.b64encode(f"{user}:{password}".encode())
    return Proxy(host, zone, port, f"Basic {credentials.decode('ascii')}")


def redirected(target: Target, location: str) -> Target | None:
    """Where a redirect leads to; `None` if it must not be followed.

    Not followed is one from TLS to none, one to something that is no WebSocket, and one from a Unix socket to
    another machine. As answers to HTTP requests often do, it may say `http` for `ws`.

    A server does not know the zones of this machine, so a link-local address that it names is one on the link over
    which it was reached. The same holds for its own address.

    Args:
      target: what was asked for.
      location: the value of `Location`, its bytes as Latin-1. Bytes beyond ASCII are percent-encoded as they came, and
        a host is read as UTF-8; so do browsers. A space is percent-encoded as well.
    """
    try:
        location = _escape(location.partition("#")[0])
        if target.unix is not None:
            is_path = location.startswith("/") and not location.startswith("//")
            slash = "/" if target.unix.startswith("\x00") else ""
            return parse_url(f"ws+unix://{slash}{quote(target.unix)}:{location}") if is_path else None
        joined = urljoin(f"http{target.scheme[2:]}://{target.authority}{target.resource}", location)
        found = parse_url(re.sub(r"^http(?=s?://)", "ws", joined, flags=re.IGNORECASE))
    except ValueError:  # urljoin has some of its own
        return None
    if target.zone and (found.host == target.host or _is_link_local(found.host)):
        found = replace(found, zone=target.zone)
    return None if found.unix is not None or (target.secure and not found.secure) else found


def _escape(location: str) -> str:
    """A `Location` with nothing in it that no URL may hold; `ValueError` where that cannot be."""
    if _CONTROL.search(location):  # of which urljoin would drop some
        raise ValueError("a control character")
    parts = _LOCATION.fullmatch(location)
    start, authority, rest = ("", "", location) if parts is None else parts.groups()
    rest = quote(rest.encode("latin-1"), safe=string.punctuation)
    return f"{start}{authority.encode('latin-1').decode()}{rest}"


def _is_link_local(host: str) -> bool:
    return ":" in host and IPv6Address(host).is_link_local


def _split(url: str, what: str, example: str) -> tuple[str, str, str]:
    if not isinstance(url, str):
        raise TypeError(f"{what} must be a str, not {type(url).__name__}")
    _refuse_bad(url, what)
    match = _SPLIT.fullmatch(url)
    if match is None:
        raise InvalidURL(f"{what} {_plain(url)} has no scheme; it looks like {example}")
    _refuse_fragment(url, what)
    return match["scheme"].lower(), match["authority"], match["rest"]


def _refuse_bad(url: str, what: str) -> None:
    bad = _BAD.search(url)
    if bad is not None:
        kind = "a space" if bad[0] == " " else "a control character" if bad[0] < "\ud800" else "a lone surrogate"
        raise InvalidURL(f"{what} {_plain(url)} holds {kind}")


def _refuse_fragment(url: str, what: str) -> None:
    if "#" in url:
        raise InvalidURL(f"{what} {_plain(url)} has a fragment; where a # belongs to it, it is %23")


def _plain(url: str) -> str:
    """A URL for an error: escaped, not long, and without a password or a query, which may be a secret too.

    The URL may be malformed, so a password is whatever may have been meant as one: all between the scheme and the last
    at sign.
    """
    shown = re.sub(r"\?.*", "?...", _SECRET.sub(r"\1...@", url), flags=re.DOTALL)
    return quoted(shown)


def _parse_unix(url: str, authority: str, rest: str) -> Target:
    path, query_mark, query = rest.partition("?")
    socket_path, _, resource = path.partition(":")
    if authority or not socket_path.startswith("/") or socket_path == "/":
        raise InvalidURL(f"the URL {_plain(url)} must look like ws+unix:///path/of/the/socket:/path")
    decoded = unquote(socket_path).removeprefix("/\x00")
    is_abstract = len(decoded) < len(unquote(socket_path))
    if "\x00" in decoded or not decoded:
        raise InvalidURL(f"the path of the socket in the URL {_plain(url)} holds a NUL")
    if resource and not resource.startswith("/"):
        raise InvalidURL(f"what follows the colon in the URL {_plain(url)} must begin with a slash")
    name = f"\x00{decoded}" if is_abstract else decoded
    return Target("ws+unix", "localhost", "", 0, name, _resource(resource + query_mark + query))


def _parse_authority(url: str, authority: str, default: int) -> tuple[str, str, int]:
    """Host, zone and port."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", authority)
    if bracketed is not None:
        (host, zone), port = _parse_ipv6(url, bracketed[1]), bracketed[2]
    else:
        host, _, port = authority.partition(":")
        host, zone = _parse_name(url, host), ""
    if not port:
        return host, zone, default
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise InvalidURL(f"the port in the URL {_plain(url)} must be a number from 1 to 65535")
    return host, zone, int(port)


def _parse_ipv6(url: str, literal: str) -> tuple[str, str]:
    address, percent, zone = literal.partition("%25")
    try:
        parsed = IPv6Address(address)
    except AddressValueError as error:
        raise InvalidURL(f"the IPv6 address in the URL {_plain(url)} is malformed") from error
    if parsed.scope_id is not None or (percent and not _ZONE.fullmatch(zone)):
        raise InvalidURL(f"the zone of the IPv6 address in the URL {_plain(url)} must look like %25eth0")
    return str(parsed), zone


def _parse_name(url: str, name: str) -> str:
    if not name:
        raise InvalidURL(f"the URL {_plain(url)} has no host")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise InvalidURL(f"the host in the URL {_plain(url)} is not a valid name: {error}") from error
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidURL(f"the host in the URL {_plain(url)} is malformed")
    return name.lower()


def _resource(rest: str) -> str:
    """Path and query as they are sent."""
    encoded = quote(rest, safe=_KEPT)
    return encoded if encoded.startswith("/") else "/" + encoded
