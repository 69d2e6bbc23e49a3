"""The closing machine: which end follows from which event (RFC 6455 section 7).

Rules of this table
* Every pair of phase and event that can happen has a row; what has no row changes nothing.
* A phase only ever moves down the list of `Phase`. Nothing reopens.
* At most one Close frame is sent: no row that starts in `CLOSING` or below sends another.
* Where both sides have sent Close, or where this side has failed the connection, nothing more is read for meaning.

What was read before a Close frame, a fault or the end of the stream is delivered and answered first. So those three
enter `ANSWERING`: the application sees that the connection is ending, its answers still go out, and `ANSWERED` comes
when its handler has taken everything, or when it takes too long.

Where it turns out while writing that the transport is broken, what the peer has sent before may not have been read yet:
its last messages, and the Close frame that says why. So `MUTE` comes first, and `LOST` when that has been read.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum, auto

__all__ = ["TRANSITIONS", "Action", "Event", "Phase"]


class Phase(IntEnum):
    """Where in its end a connection is; the order matters."""

    OPEN = 0
    """Messages flow both ways."""
    ANSWERING = 1
    """The peer has closed, failed or gone silent for good; what it sent before is still being answered."""
    MUTE = 2
    """Nothing can be sent any more; what the peer sent before that is still read and delivered."""
    CLOSING = 3
    """Our Close frame is queued; the peer's is awaited. What else comes in is dropped."""
    ENDING = 4
    """Nothing more will be queued; what is queued leaves, then the transport closes."""
    CLOSED = 5
    """The transport carries nothing more, and the CloseInfo is final."""


class Event(Enum):
    """What moves a connection towards its end."""

    LOCAL_CLOSE = auto()
    """`close()`, the end of a session handler, a shutdown."""
    PEER_CLOSE = auto()
    """A Close frame came in, or a fault, or the end of the stream, while messages before it may be unanswered."""
    ANSWERED = auto()
    """The peer's Close, fault or end of stream is due now."""
    FAIL = auto()
    """This side gives the connection up with a code: a fault of the peer, a limit, an exception in a handler."""
    PEER_ENDED = auto()
    """The stream has ended without a Close frame, and nothing is left to be answered."""
    FLUSHED = auto()
    """Everything that was queued has left."""
    TIMEOUT = auto()
    """The closing handshake took longer than `close_timeout`."""
    BROKEN = auto()
    """Writing has failed; `LOST` follows when everything that has come was read."""
    LOST = auto()
    """The transport broke, or `abort()` was called."""


class Action(Enum):
    """What a transition makes the connection do."""

    SEND_CLOSE = auto()
    """Queue the Close frame that the event carries."""
    FINISH = auto()
    """Close the transport in an orderly way: the queue, then the end of the stream."""
    DROP = auto()
    """Abort the transport."""


TRANSITIONS: Mapping[tuple[Phase, Event], tuple[Phase, tuple[Action, ...]]] = {
    # RFC 6455 section 7.1.2: a Close frame starts the closing handshake.
    (Phase.OPEN, Event.LOCAL_CLOSE): (Phase.CLOSING, (Action.SEND_CLOSE,)),
    (Phase.OPEN, Event.PEER_CLOSE): (Phase.ANSWERING, ()),
    # Section 7.1.7: failing the connection sends Close and does not wait for an answer.
    (Phase.OPEN, Event.FAIL): (Phase.ENDING, (Action.SEND_CLOSE,)),
    (Phase.OPEN, Event.LOST): (Phase.CLOSED, (Action.DROP,)),
    (Phase.OPEN, Event.BROKEN): (Phase.MUTE, ()),
    # Section 5.5.1: an endpoint may delay its answering Close until its current message is sent.
    (Phase.ANSWERING, Event.LOCAL_CLOSE): (Phase.ENDING, (Action.SEND_CLOSE,)),
    (Phase.ANSWERING, Event.ANSWERED): (Phase.ENDING, (Action.SEND_CLOSE,)),
    (Phase.ANSWERING, Event.FAIL): (Phase.ENDING, (Action.SEND_CLOSE,)),
    (Phase.ANSWERING, Event.PEER_ENDED): (Phase.CLOSED, (Action.FINISH,)),
    (Phase.ANSWERING, Event.LOST): (Phase.CLOSED, (Action.DROP,)),
    # There is nobody to answer, so what the peer has said last ends it. What waits for the handler is still taken.
    (Phase.MUTE, Event.PEER_CLOSE): (Phase.CLOSED, (Action.DROP,)),
    (Phase.MUTE, Event.LOST): (Phase.CLOSED, (Action.DROP,)),
    # The handler has had enough. A Close frame of the peer's may still be found in what is left to be read.
    (Phase.MUTE, Event.LOCAL_CLOSE): (Phase.CLOSING, ()),
    # Section 7.1.4: both Close frames exchanged. Section 7.1.1: the server closes TCP first.
    (Phase.CLOSING, Event.PEER_CLOSE): (Phase.ENDING, ()),
    (Phase.CLOSING, Event.FAIL): (Phase.ENDING, ()),
    # No answer will come, but a peer that has ended its direction only still reads what is queued.
    (Phase.CLOSING, Event.PEER_ENDED): (Phase.ENDING, ()),
    (Phase.CLOSING, Event.TIMEOUT): (Phase.CLOSED, (Action.DROP,)),
    (Phase.CLOSING, Event.LOST): (Phase.CLOSED, (Action.DROP,)),
    (Phase.ENDING, Event.FLUSHED): (Phase.CLOSED, (Action.FINISH,)),
    (Phase.ENDING, Event.TIMEOUT): (Phase.CLOSED, (Action.DROP,)),
    (Phase.ENDING, Event.LOST): (Phase.CLOSED, (Action.DROP,)),
}
