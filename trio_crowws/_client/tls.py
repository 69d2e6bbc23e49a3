"""TLS at a client: the contexts it makes itself, and what the errors of TLS mean to a person."""

from __future__ import annotations

import ssl
import warnings
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from .._protocol.url import Target

__all__ = ["AT_A_COMMAND_LINE", "IN_A_PROGRAM", "Advice", "default_context", "describe", "without_certificate"]


class Advice(NamedTuple):
    """What somebody can do about an error: in a program it is an argument, at a command line an option.

    Attributes:
      trust: how to trust an authority.
      certificate: how to give a certificate for the client.
      versions: how to allow other versions of TLS.
      anyway: how to do without a check of the certificate; it may be empty.
    """

    trust: str
    certificate: str
    versions: str
    anyway: str = ""


IN_A_PROGRAM: Final = Advice(
    "give its authority by ssl_context=ssl.create_default_context(cafile=...)",
    "give one by load_cert_chain of an ssl_context",
    "see minimum_version and maximum_version of ssl_context",
)

AT_A_COMMAND_LINE: Final = Advice(
    "--cafile FILE trusts its authority",
    "this command has none to give",
    "this command allows those that the system's OpenSSL allows",
    "--insecure accepts any certificate",
)

_UNTRUSTED: Final = "comes from an authority that is not trusted here"

# The numbers of X509_V_ERR_*, which OpenSSL never changes.
_CERTIFICATES: Final = {
    2: _UNTRUSTED,
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed, and not trusted here",
    19: _UNTRUSTED,
    20: _UNTRUSTED,
    21: _UNTRUSTED,
    23: "was revoked",
    62: "is one for another host",
    64: "is one for another host",
}
_UNTRUSTED_CODES: Final = frozenset((2, 18, 19, 20, 21))
_OTHER_HOST_CODES: Final = frozenset((62, 64))
_DATE_CODES: Final = frozenset((9, 10))

_NO_TLS: Final = frozenset(
    (
        "WRONG_VERSION_NUMBER",
        "UNKNOWN_PROTOCOL",
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNEXPECTED_RECORD",
    )
)
_VERSIONS: Final = frozenset(
    (
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "NO_PROTOCOLS_AVAILABLE",
        "WRONG_SSL_VERSION",
    )
)
_WRONG_CERTIFICATE: Final = frozenset(
    (
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV1_ALERT_DECRYPT_ERROR",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    )
)


def default_context() -> ssl.SSLContext:
    """What speaks TLS where the caller has given nothing: the system says who is trusted."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # a server that prefers HTTP/2 would not know what to do with an upgrade
    return context


def without_certificate(context: ssl.SSLContext) -> ssl.SSLContext:
    """A context that checks servers as `context` does, but has nothing to show of the client.

    A context does not tell whether it holds a certificate and a key, so this is a new one. It trusts the authorities
    that `context` has loaded, and those of the system if they are among them; has the same versions, ciphers,
    flags and checks. What it cannot know is a single certificate that is trusted without being an authority: a server
    with that is not trusted by the new one.
    """
    made = default_context()
    try:
        own = context.get_ca_certs(binary_form=True)
    except NotImplementedError:  # a subclass that asks the system whom it trusts
        own = made.get_ca_certs(binary_form=True)
    if not {*own} >= {*made.get_ca_certs(binary_form=True)}:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.set_alpn_protocols(["http/1.1"])
    if own:
        made.load_verify_locations(cadata=b"".join(own))
    made.check_hostname = False  # or the next line may be refused
    made.verify_mode = context.verify_mode
    made.check_hostname = context.check_hostname
    made.verify_flags = context.verify_flags
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # whoever made `context` has had that one
        made.options = context.options
        made.minimum_version = context.minimum_version
        made.maximum_version = context.maximum_version
    made.hostname_checks_common_name = context.hostname_checks_common_name
    # Only ciphers of TLS 1.2 and before can be named here, and a context always has one of them.
    ciphers = [each["name"] for each in context.get_ciphers() if each["protocol"] != "TLSv1.3"]
    made.set_ciphers(":".join([*ciphers, f"@SECLEVEL={context.security_level}"]))
    return made


def describe(error: ssl.SSLError, target: Target, advice: Advice = IN_A_PROGRAM) -> str:
    """What is wrong, and what can be done about it.

    Args:
      error: what TLS has raised, or the alert of the server.
      target: whom the client wanted to talk to.
      advice: for where it is read.
    """
    host = target.server_hostname
    if isinstance(error, ssl.SSLCertVerificationError):
        detail = _describe_certificate(error, host, advice)
    else:
        detail = _describe_alert(error, host, advice)
    return f"TLS with {target.tunnel} failed: {detail}"


def _describe_alert(error: ssl.SSLError, host: str, advice: Advice) -> str:
    reason: str = error.reason or ""
    if reason in _NO_TLS:
        text = "this port does not speak TLS; is it one for ws://?"
    elif reason in _VERSIONS:
        text = f"the two sides have no version of TLS in common; {advice.versions}"
    elif reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        text = f"the server demands a certificate of the client; {advice.certificate}"
    elif reason in _WRONG_CERTIFICATE:
        text = f"the server does not accept the certificate of the client, or misses one; {advice.certificate}"
    elif reason == "SSLV3_ALERT_HANDSHAKE_FAILURE":
        text = (
            "the handshake was refused; perhaps the server demands a certificate of the client "
            f"({advice.certificate}), or has no cipher in common with this side"
        )
    elif reason == "TLSV1_UNRECOGNIZED_NAME":
        text = f"the server does not know the name {host}"
    else:
        return str(error)
    return f"{text} ({error.strerror})"


def _describe_certificate(error: ssl.SSLCertVerificationError, host: str, advice: Advice) -> str:
    code, message = error.verify_code, error.verify_message
    text = f"the certificate of {host} {_CERTIFICATES.get(code, 'is not accepted')}"
    if code in _UNTRUSTED_CODES:
        todo = advice.trust
    elif code in _OTHER_HOST_CODES:
        todo = "use a host name of the certificate in the URL"
    elif code in _DATE_CODES:
        todo = "the server needs a new one, or the clock of this machine is wrong"
    else:
        todo = ""
    todo = " or ".join(filter(None, (todo, advice.anyway)))
    return f"{text} (certificate verify failed: {message})" + (f"; {todo}" if todo else "")
