"""TLS over a socket of the poller, without tasks of its own.

`ssl.SSLObject` with two memory buffers does for TLS what the protocol layer does for WebSocket: bytes in, bytes out, no
waiting. So this transport stands between the socket below and the receiver above. From the socket it gets records, and
feeds what they hold; what it is given to write leaves as records. It can also do what a stream over TLS cannot: end its
direction with `close_notify` and the end of the TCP stream, and still read, so that the last frames are not destroyed
by a reset.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from .base import READ_SIZE, Transport, TurnQueue, count_small

if TYPE_CHECKING:
    from .poller import SocketTransport
    from .timers import Timers

__all__ = ["TLSTransport"]

_ALERT_LINGER = 1.0
"""Seconds for a peer whose TLS is refused to read the alert."""


class TLSTransport(Transport):
    """TLS over a `SocketTransport`, whose receiver it is.

    Args:
      lower: the socket.
      context: what to speak.
      turns: the engine's.
      timers: the engine's.
      server_hostname: for a client, whom it wants to talk to; `None` for a server.
    """

    __slots__ = ("_incoming", "_lower", "_outgoing", "_ready", "_tls")

    def __init__(
        self,
        lower: SocketTransport,
        context: ssl.SSLContext,
        turns: TurnQueue,
        timers: Timers,
        server_hostname: str | None = None,
    ) -> None:
        super().__init__(turns, timers, lower.local_address, lower.remote_address)
        self.secure = True
        self._lower = lower
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_hostname is None, server_hostname=server_hostname
        )
        self._ready = False

    def start(self) -> None:
        self._lower.start()
        if not self._tls.server_side:  # it is for the client to begin
            try:
                self._shake_hands()
            except ssl.SSLError as error:
                self._give_up(error)

    # From the socket

    def _on_data(self, data: bytes) -> None:
        """Take records."""
        self._incoming.write(data)
        try:
            if not self._ready and not self._shake_hands():
                return
            plain, ended = self._decrypt()
        except ssl.SSLError as error:
            self._give_up(error)
            return
        self._send_records()  # a key update, or a session ticket
        if plain and not self._feed(plain):
            return
        if ended:
            self._on_eof()
        elif self.more and not self.closed:
            # Nothing must come up before the receiver has worked through what it has.
            self._lower.pause()

    def _give_up(self, error: ssl.SSLError) -> None:
        """The peer does not speak TLS, or not a kind that both sides know. It gets the alert that says so."""
        self._send_records()
        if not self.closed:
            receiver = self._detach()
            self._lower.close(self._timers.tick() + _ALERT_LINGER, linger=True)
            self._forget()
            receiver._on_lost(error)

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_records()
            return False
        self._ready = True
        self._send_records()
        if self._out:
            self.flush()
        return True

    def _decrypt(self) -> tuple[bytes, bool]:
        """What the records hold, and whether the peer has ended its direction."""
        pieces: list[bytes] = []
        while self._incoming.pending or self._tls.pending():
            try:
                piece = self._tls.read(READ_SIZE)
            except ssl.SSLWantReadError:
                break
            if not piece:
                return b"".join(pieces), True
            pieces.append(piece)
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), False

    def _on_eof(self) -> None:
        """The peer has ended its direction, with or without `close_notify`."""
        self._report_end()

    def _on_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._fail(error)

    def _on_stalled(self) -> None:
        """The peer does not read."""
        self._look_below()
        self.receiver._on_stalled()

    def _on_drained(self) -> None:
        """Some of the records have left."""
        self._look_below()
        self.flush()
        if not self.closed:
            self.receiver._on_drained()

    # To the socket

    def flush(self) -> None:
        if not self._ready:
            if self._closing is not None:
                self._out.clear()  # without a handshake nothing can be said
                self._flushed_for_close()
            return
        # Piece by piece, and no further than the socket takes: what waits is not kept a second time as records, and the
        # buffer between would never again be smaller than what once went through it.
        while self._out and not self.blocked:
            self._tls.write(self._take_piece())
            self._send_records()
        if not self._out and self._closing is not None and not self.closed:
            self._flushed_for_close()

    def _take_piece(self) -> bytes | bytearray | memoryview:
        """What goes into the next records: all small pieces together, or a part of a large one."""
        out = self._out
        count = count_small(out)
        data = out[0] if count == 1 else b"".join(out[:count])
        if len(data) > READ_SIZE:
            out[:count] = (memoryview(data)[READ_SIZE:],)
            return memoryview(data)[:READ_SIZE]
        del out[:count]
        return data

    def _send_records(self) -> None:
        lower = self._lower
        if self._outgoing.pending:
            corked, lower.corked = lower.corked, True
            lower.write(self._outgoing.read())
            lower.corked = corked
            lower.flush()
        if not self.closed:
            self._look_below()

    def _look_below(self) -> None:
        self.blocked = self._lower.blocked
        self.bytes_sent = self._lower.bytes_sent
        self.buffered = self._lower.buffered + sum(map(len, self._out))

    def turn(self) -> None:
        super().turn()
        if self.closed or self.paused:
            return
        if self.more:
            self.more = False
            if not self._feed(b"") or self.more or self.paused:
                return
        self._lower.resume()

    def limit_unsent(self, size: int | None) -> None:
        self._lower.limit_unsent(size)

    def pause(self) -> None:
        super().pause()
        self._lower.pause()

    def resume(self) -> None:
        super().resume()
        if self.more:
            self.ask_for_turn()
        else:
            self._lower.resume()

    # The end

    def _flushed_for_close(self) -> None:
        if self._ready:
            with suppress(ssl.SSLError):  # our close_notify is in the buffer then; the peer's is not waited for
                self._tls.unwrap()
            self._send_records()
        assert self._timer is not None
        self._lower.close(self._timer.deadline, linger=bool(self._closing), patient=self._patient)
        self._forget()

    @property
    def released(self) -> bool:
        """Whether the socket is closed; it may outlive this layer, to linger."""
        return self._lower.closed

    def abort(self) -> None:
        self._release()

    def _release(self) -> None:
        self._lower.abort()  # it may outlive this layer, to linger
        if not self.closed:
            self._forget()
