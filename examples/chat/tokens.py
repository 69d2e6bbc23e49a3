"""Demo tokens: a name and a time, signed. They prove that this process made them, and nothing else.

Anybody may have a token for any name: `/token` stands where a real login with a password would be. What is real is the
other half, the check before the upgrade. The key is made at the start, so no token outlives the process.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

LIFETIME = 3600
"""How long a token is good for, in seconds. It is needed only when a connection begins."""


class Tokens:
    """Makes tokens and recognises its own."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._key = secrets.token_bytes(32)
        self._clock = clock

    def issue(self, name: str) -> str:
        """A token for `name`, fit for a URL and a cookie."""
        payload = base64.urlsafe_b64encode(f"{int(self._clock()) + LIFETIME}:{name}".encode()).decode().rstrip("=")
        return f"{payload}.{self._sign(payload)}"

    def name(self, token: str) -> str | None:
        """Whose token this is, or `None` when it is forged, damaged or too old."""
        payload, _, signature = token.partition(".")
        # Bytes, because compare_digest refuses a str that is not ASCII, and the token can be anything.
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign(payload).encode()):
            return None
        padding = "=" * (-len(payload) % 4)
        expires, _, name = base64.urlsafe_b64decode(payload + padding).decode().partition(":")
        return name if int(expires) > self._clock() else None

    def _sign(self, payload: str) -> str:
        return hmac.digest(self._key, payload.encode("utf-8", "replace"), hashlib.sha256).hex()
