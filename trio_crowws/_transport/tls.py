"""TLS over a socket of the poller, or over a stream, without tasks of its own.

`ssl.SSLObject` with two memory buffers does for TLS what the protocol layer does for WebSocket: bytes in, bytes out, no
waiting. So this transport stands between the socket below and the receiver above. From the socket it gets records, and
feeds what they hold; what it is given to write leaves as records. It can also do what a stream over TLS cannot: end its
direction with `close_notify` and the end of the TCP stream, and still read, so that the last frames are not destroyed
by a reset.

Order. What was decrypted is fed before anything that came behind it is acted upon, as over TCP: `close_notify`, the end
of the stream, and a record that cannot be decrypted wait until the receiver has got through and reading is not paused.

TLS talks, too. A peer of TLS 1.2 may renegotiate; then nothing can be encrypted until it has answered, and the piece
that was to be encrypted waits, and everything behind it. A peer of TLS 1.3 may have the keys changed and ask for the
same in return. These records carry nothing, and cost work and answers. So one turn works on a part of them only
(`_PART`), a peer that sends many of them in a row is read slowly (`_BARREN`) and in the end no more (`_MOST_BARREN`),
and nothing is read while many answers wait for the peer (`_MOST_ANSWERS`).
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING

from .base import READ_SIZE, Transport, TurnQueue, count_small
from .timers import Timer

if TYPE_CHECKING:
    from .timers import Timers

__all__ = ["TLSTransport"]

_ALERT_LINGER = 1.0
"""Seconds for a peer whose TLS is refused to read the alert."""

_PART = 17 * 1024
"""Bytes of records that are decrypted before it is asked what they held. The largest record is a little smaller, so a
part of a stream of data always completes one."""

_DENSE = 7 / 8
"""A part that holds less data than this is enough for a turn: the rest of it may be what costs most, key updates."""

_WORTH = 8
"""Bytes of records that one byte of data may bring along. Of a message of no more than a byte, it is about five."""

_BARREN = 64 * 1024
"""Bytes of records without data, beyond which there is a rest after each part. An honest peer has that many in a
renegotiation with very long chains of certificates, if ever."""

_REST = 0.1
"""Seconds; a part full of key updates takes about a tenth of it."""

_MOST_BARREN = 1024 * 1024
"""Bytes of records without data, beyond which the peer is given up: about 40,000 key updates."""

_MOST_ANSWERS = 16 * 1024
"""Bytes of records of TLS's own that wait for the peer, beyond which nothing is read from it: about 600 key updates."""

_MOST_HELD = 16 * 1024
"""Bytes of data that may come between the records of a renegotiation and nobody takes, beyond which nothing is read."""


class TLSTransport(Transport):
    """TLS over another transport, whose receiver it is.

    Args:
      lower: the socket or stream.
      context: what to speak.
      turns: the engine's.
      timers: the engine's.
      server_hostname: for a client, whom it wants to talk to; `None` for a server.
    """

    __slots__ = (
        "_answers",
        "_at_end",
        "_barren",
        "_end_told",
        "_fault",
        "_incoming",
        "_lower",
        "_outgoing",
        "_piece",
        "_plain",
        "_ready",
        "_records",
        "_resting",
        "_shook_hands_at",
        "_tls",
    )

    def __init__(
        self,
        lower: Transport,
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
        self._shook_hands_at = -math.inf
        self._records = b""  # read, but not yet decrypted
        self._plain = b""  # decrypted, but not yet fed
        self._at_end = False  # the peer has ended its direction, with or without `close_notify`
        self._end_told = False
        self._fault: ssl.SSLError | None = None  # the peer's TLS cannot be understood
        self._piece: bytes | bytearray | memoryview | None = None  # to be encrypted when a renegotiation is over
        self._answers: int = 0  # of the bytes that wait below, so many TLS has said by itself
        self._barren: int = 0  # bytes of records without data; see `_WORTH`
        self._resting: Timer | None = None  # until it fires, nothing is read

    def start(self) -> None:
        self._lower.start()
        if not self._tls.server_side and not self.closed:  # it is for the client to begin
            try:
                self._shake_hands()
            except ssl.SSLError as error:
                self._give_up(error)
            except Exception as error:
                self.report(error)

    @property
    def in_kernel(self) -> int | None:
        return self._lower.in_kernel

    @property
    def behind(self) -> bool:
        unread = self.more or bool(self._records) or self._lower.unread
        return unread and not self.paused and not self.closed and self._resting is None

    @property
    def unread(self) -> bool:
        return self.more or bool(self._records or self._plain)

    @property
    def shook_hands_at(self) -> float:
        return self._shook_hands_at

    # From the socket

    def _on_data(self, data: bytes) -> None:
        """Take records."""
        if self._at_end or self._fault is not None:
            return  # behind the end there is nothing
        if self._records:
            data = self._records + data
            self._records = b""
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Decrypt records, as many as one turn is for, and go on with what they held."""
        pieces: list[bytes] = []
        if len(data) <= _PART:
            self._open(data, pieces)
        else:
            self._open_in_parts(memoryview(data), pieces)
        waited = self._piece is not None
        if self._outgoing.pending:
            self._send_records(answer=True)
        if self._fault is not None:
            self._write_failed(self._fault)
        elif waited:
            self._seal_again()
        if self.closed:
            return
        if len(pieces) == 1 and not (self._plain or self.paused or self.more):  # nearly always
            if not self._feed(pieces[0]):
                return
        elif pieces:
            pieces.insert(0, self._plain)
            self._plain = b"".join(pieces)
        self._go_on()

    def _open_in_parts(self, data: memoryview, pieces: list[bytes]) -> None:
        for start in range(0, len(data), _PART):
            if not self._open(data[start : start + _PART], pieces):
                if self._fault is None and not self._at_end:
                    self._records = bytes(data[start + _PART :])
                break

    def _open(self, part: bytes | memoryview, pieces: list[bytes]) -> bool:
        """Append to `pieces` what the records of `part` hold; `False` if this is enough for one turn."""
        found = 0
        shaking = not self._ready
        self._incoming.write(part)
        try:
            if shaking:
                self._shook_hands_at = self._timers.now
                if not self._shake_hands():
                    return True
            while self._incoming.pending or self._tls.pending():
                piece = self._tls.read(READ_SIZE)
                if not piece:
                    self._at_end = True
                    return False
                pieces.append(piece)
                found += len(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._fault = error
            return False
        if not shaking:
            barren = self._barren + len(part) - _WORTH * found
            self._barren = max(0, barren)
            if barren > _BARREN:
                self._rest()
        return found >= len(part) * _DENSE

    def _rest(self) -> None:
        """The peer sends what is nothing but work: do less of it, and in the end none."""
        if self._barren > _MOST_BARREN:
            self._fault = ssl.SSLError(ssl.SSL_ERROR_SSL, f"{self._barren} bytes of TLS records held nearly no data")
        elif self._resting is None:
            self._resting = Timer(self._timers, self._rested, self)
            self._resting.arm(self._timers.tick() + _REST)

    def _rested(self, now: float) -> None:
        self._resting = None
        if not self.closed:
            self.ask_for_turn()

    def _go_on(self) -> None:
        """Feed what is decrypted, and when the receiver has got through that, act on what came behind it."""
        if self._plain and not self.paused and not self.more:
            plain, self._plain = self._plain, b""
            if not self._feed(plain):
                return
        if self._records:
            if self._resting is None:
                self.ask_for_turn()
        elif (self._at_end or self._fault is not None) and not (self._plain or self.paused or self.more):
            if self._fault is not None:
                self._give_up(self._fault)
                return
            if not self._end_told:
                self._end_told = True
                self._report_end()
        if not self.closed:
            self._steer()

    def _steer(self) -> None:
        """Have the socket read, or not. Nothing must come up before the receiver has worked through what it has."""
        wait: object
        if self._piece is None:
            wait = self.paused or self.more or self._records or self._plain
        else:  # what the peer has to say first is read although nobody takes its messages
            wait = self._records or len(self._plain) > _MOST_HELD
        if wait or self._resting is not None or self._answers > _MOST_ANSWERS:
            self._lower.pause()
        elif self._lower.paused:
            self._lower.resume()

    def _give_up(self, error: ssl.SSLError) -> None:
        """The peer does not speak TLS, or not a kind that both sides know. It gets the alert that says so."""
        self._fault = error
        self._send_records()
        receiver = self._detach()
        self._lower.close(self._timers.tick() + _ALERT_LINGER, linger=True)
        self._forget()
        receiver._on_lost(error)

    def _shake_hands(self) -> bool:
        try:
            # In a context of its own, because an SSLContext may call functions of the application, as for SNI.
            copy_context().run(self._tls.do_handshake)
        except ssl.SSLWantReadError:
            self._send_records()
            return False
        self._ready = True
        self._send_records()
        if self._out:
            self.flush()
        return True

    def _on_eof(self) -> None:
        """The peer has ended its direction, with or without `close_notify`."""
        self._at_end = True
        if self._piece is not None:
            self._write_failed(ssl.SSLError(ssl.SSL_ERROR_EOF, "the stream ended in the middle of a renegotiation"))
        self._go_on()

    def _on_lost(self, error: Exception | None) -> None:
        """The socket is gone; what it has brought, perhaps a Close, is fed first."""
        if error is None or not (self._plain or self._records or self.more):
            self._fail(error)
            return
        self._at_end = True
        self._write_failed(error)
        if not self.closed:
            self._go_on()

    def _on_broken(self, error: Exception) -> None:
        """The socket takes nothing more; what it has got is still read."""
        self._write_failed(error)

    def _read_out(self) -> None:
        """The socket does it."""

    def _write_failed(self, error: Exception) -> None:
        self._piece = None
        super()._write_failed(error)

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
        if not self.closed:
            self._steer()

    # To the socket

    def flush(self) -> None:
        if not self._ready:
            if self._closing is not None:
                self._out.clear()  # without a handshake nothing can be said
                self._flushed_for_close()
            return
        # Piece by piece, and no further than the socket or stream takes: what waits is not kept a second time as
        # records, and a MemoryBIO never shrinks.
        lower = self._lower
        while self._out and self._piece is None and not lower.blocked and lower.buffered < READ_SIZE:
            if not self._seal(self._take_piece()):
                if self._piece is not None:
                    self.receiver._on_stalled()
                    self._steer()
                return
        if self._closing is not None and not self.closed:
            if self._out:
                self._steer()  # nobody listens any more, but what the peer says may end it
            else:
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

    def _seal(self, piece: bytes | bytearray | memoryview) -> bool:
        """Make records of `piece`; `False` if that cannot be done now, or not any more."""
        try:
            self._tls.write(piece)
        except ssl.SSLWantReadError:
            # A renegotiation: the peer has to say something first. OpenSSL wants the very same piece again then.
            self._piece = piece
            self._send_records(answer=True)
            return False
        except ssl.SSLError as error:
            self._write_failed(error)
            return False
        self._send_records()
        return True

    def _seal_again(self) -> None:
        """Some of what the peer has to say in a renegotiation has come, perhaps the last of it."""
        piece, self._piece = self._piece, None
        assert piece is not None
        if self._seal(piece):
            self.flush()
            if not self.closed:
                self.receiver._on_drained()

    def _send_records(self, *, answer: bool = False) -> None:
        """Hand down what is encrypted; with `answer`, TLS itself has said it."""
        lower = self._lower
        if self._outgoing.pending:
            records = self._outgoing.read()
            corked, lower.corked = lower.corked, True
            lower.write(records)
            lower.corked = corked
            lower.flush()
            if answer:
                self._answers += len(records)
        if not self.closed:
            self._look_below()

    def _look_below(self) -> None:
        lower = self._lower
        waiting = 0 if self._piece is None else len(self._piece)
        self.blocked = lower.blocked or self._piece is not None
        self.bytes_sent = lower.bytes_sent
        self.buffered = lower.buffered + sum(map(len, self._out)) + waiting
        if self._answers > lower.buffered:
            self._answers = lower.buffered

    def turn(self) -> None:
        super().turn()
        if self.closed:
            return
        if self.more and not self.paused:
            self.more = False
            if not self._feed(b""):
                return
        if self._may_take():
            records, self._records = self._records, b""
            self._take(records)
        else:
            self._go_on()

    def _may_take(self) -> bool:
        """Whether it is time for records that were left from an earlier turn."""
        if not self._records or self._resting is not None:
            return False
        return self._piece is not None or not (self.more or self.paused)

    def limit_unsent(self, size: int | None) -> None:
        self._lower.limit_unsent(size)

    def pause(self) -> None:
        super().pause()
        self._steer()

    def resume(self) -> None:
        super().resume()
        # By way of a turn: whoever says this is in the middle of its own work, and must not be fed there.
        self.ask_for_turn()

    # The end

    def _flushed_for_close(self) -> None:
        if self._piece is not None:
            return  # this is called again when it has left
        if self._ready:
            with suppress(ssl.SSLError):  # our close_notify is in the buffer then; the peer's is not waited for
                self._tls.unwrap()
            self._send_records()
        assert self._progress is not None
        patient = self._patient and not self._at_end  # whoever has said `close_notify` has ended the stream
        deadline = self._timers.tick() + self._progress.window
        self._lower.close(deadline, linger=bool(self._closing), patient=patient)
        self._forget()

    def end_linger(self) -> None:
        if self.closed:
            self._lower.end_linger()
        else:
            self.abort()

    def when_released(self, callback: Callable[[], None]) -> None:
        self._lower.when_released(callback)  # it may outlive this layer, to linger

    @property
    def released(self) -> bool:
        """Whether the socket is closed; it may outlive this layer, to linger."""
        return self._lower.released

    def abort(self) -> None:
        if not self.closed or self._fault is None:  # else the peer has a moment to read the alert
            self._release()

    def _release(self) -> None:
        self._lower.abort()  # it may outlive this layer, to linger
        if not self.closed:
            self._forget()
