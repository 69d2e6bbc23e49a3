"""All scripted sessions of the cancellation sweep."""

from __future__ import annotations

from sweep.ends import (
    AbortByHandler,
    Aborting,
    AcceptSleeps,
    BothClose,
    CloseSleeps,
    ClosingBusy,
    ClosingHalfOpen,
    Draining,
    EndlessCallbacks,
    FailingCallbacks,
    FailingChild,
    Fault,
    HalfClosed,
    Heartbeat,
    LocalClose,
    Lost,
    Refusal,
    SilentPeer,
    Unstoppable,
)
from sweep.playing import Script
from sweep.talks import (
    Children,
    CloseWhileSending,
    CompressedSenders,
    CompressedStalled,
    CompressedTalk,
    Flood,
    HandlerSleeps,
    NewHandler,
    OpenSleeps,
    Overflow,
    Pinging,
    PingUnanswered,
    Rooms,
    Senders,
    Stalled,
    StalledForEver,
    Talk,
    TalkEarly,
)

__all__ = ["INTERRUPTED", "ON_SOCKETS", "ON_TLS", "SCRIPTS", "Flood"]

SCRIPTS: tuple[type[Script], ...] = (
    Talk,
    TalkEarly,
    LocalClose,
    BothClose,
    SilentPeer,
    HandlerSleeps,
    OpenSleeps,
    Unstoppable,
    Stalled,
    StalledForEver,
    CloseWhileSending,
    Overflow,
    Draining,
    ClosingBusy,
    ClosingHalfOpen,
    Aborting,
    AcceptSleeps,
    Refusal,
    Fault,
    CloseSleeps,
    EndlessCallbacks,
    FailingCallbacks,
    Children,
    FailingChild,
    Senders,
    Rooms,
    Heartbeat,
    Pinging,
    PingUnanswered,
    Lost,
    HalfClosed,
    AbortByHandler,
    NewHandler,
    CompressedTalk,
    CompressedStalled,
    CompressedSenders,
)

ON_SOCKETS: tuple[type[Script], ...] = (
    Talk,
    TalkEarly,
    LocalClose,
    Draining,
    AcceptSleeps,
    Refusal,
    Fault,
    Children,
    Rooms,
    HalfClosed,
    AbortByHandler,
    CompressedTalk,
)
"""Those that need no fault of a memory stream."""

ON_TLS: tuple[type[Script], ...] = (Talk, TalkEarly, LocalClose, Draining, AcceptSleeps, Refusal, Fault, AbortByHandler)
"""Those of them that never end one direction alone."""

INTERRUPTED: tuple[type[Script], ...] = (
    Talk,
    LocalClose,
    HandlerSleeps,
    Draining,
    ClosingBusy,
    ClosingHalfOpen,
    AcceptSleeps,
    Fault,
    Children,
)
"""Sessions in all their phases, the server's own end among them."""
