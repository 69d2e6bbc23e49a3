"""Negotiating permessage-deflate: configuration, offers, answers."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_crowws import Deflate
from trio_crowws._protocol.deflate_offer import Agreement, Setting, check_answer, make_offer, negotiate
from trio_crowws.errors import HandshakeError

WIDE = Deflate(
    server_max_window_bits=15,
    client_max_window_bits=15,
    server_no_context_takeover=False,
    client_no_context_takeover=False,
)
"""Asks for nothing, so an answer shows only what the offer asks for."""


PARAMETERS = [
    "server_no_context_takeover",
    "client_no_context_takeover",
    "client_max_window_bits",
    *(f"{side}_max_window_bits={bits}" for side in ("server", "client") for bits in (9, 12, 15)),
]
"""What an offer may have."""

configs = st.builds(
    Deflate,
    server_max_window_bits=st.integers(9, 15),
    client_max_window_bits=st.integers(9, 15),
    server_no_context_takeover=st.booleans(),
    client_no_context_takeover=st.booleans(),
)


def accept(*offers: str, config: Deflate = WIDE) -> Agreement:
    agreement = negotiate(offers, config)
    assert agreement is not None
    return agreement


def answer(*offers: str, config: Deflate = WIDE) -> str | None:
    agreement = negotiate(offers, config)
    return None if agreement is None else agreement.header


# Configuration


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("threshold", -1, "an int of at least 0"),
        ("level", 0, "an int from 1 to 9"),
        ("level", 10, "an int from 1 to 9"),
        ("mem_level", 0, "an int from 1 to 9"),
        ("mem_level", 10, "an int from 1 to 9"),
        ("server_max_window_bits", 8, "an int from 9 to 15"),
        ("server_max_window_bits", 16, "an int from 9 to 15"),
        ("client_max_window_bits", 8, "an int from 9 to 15"),
        ("client_max_window_bits", 16, "an int from 9 to 15"),
    ],
)
def test_value_out_of_range(name: str, value: int, allowed: str) -> None:
    """A value out of range is refused with its name, itself and what is allowed."""
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(
        ValueError, match=re.escape(f"Deflate option {name}={value} is not allowed; it must be {allowed}")
    ):
        Deflate(**arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 10.0),
        ("threshold", None),
        ("level", "3"),
        ("level", True),
        ("mem_level", None),
        ("server_max_window_bits", None),
        ("client_max_window_bits", False),
        ("server_no_context_takeover", 1),
        ("client_no_context_takeover", None),
    ],
)
def test_value_of_the_wrong_type(name: str, value: object) -> None:
    """A value of another type is a `TypeError` with its name and itself."""
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=re.escape(f"Deflate option {name}={value!r} is not allowed")):
        Deflate(**arguments)


def test_limits_of_the_ranges() -> None:
    """The ends of every range are allowed."""
    Deflate(threshold=0, level=1, mem_level=1, server_max_window_bits=9, client_max_window_bits=9)
    Deflate(threshold=10**9, level=9, mem_level=9, server_max_window_bits=15, client_max_window_bits=15)


def test_defaults() -> None:
    """By default the server keeps no context, so that frames can be shared, and the client's window is 4 KiB."""
    config = Deflate()
    assert config.threshold == 1024
    assert config.server_no_context_takeover
    assert not config.client_no_context_takeover
    assert (config.server_max_window_bits, config.client_max_window_bits) == (12, 12)


# What is answered


@pytest.mark.parametrize(
    "offer", ["", "x-webkit-deflate-frame", "permessage-deflatex", "Permessage-Deflate", ",", " , ,"]
)
def test_nothing_acceptable_is_offered(offer: str) -> None:
    """Where permessage-deflate is not offered, nothing is answered."""
    assert negotiate([offer], WIDE) is None
    assert negotiate([], WIDE) is None


def test_bare_offer() -> None:
    """An offer without parameters is accepted without parameters if neither side wants any."""
    agreement = accept("permessage-deflate")
    assert agreement.header == "permessage-deflate"
    assert not agreement.server_no_context_takeover
    assert not agreement.client_no_context_takeover
    assert agreement.server_max_window_bits == agreement.client_max_window_bits == 15


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        ("server_no_context_takeover", "server_no_context_takeover"),
        ("client_no_context_takeover", "client_no_context_takeover"),
        ("server_max_window_bits=15", "server_max_window_bits=15"),
        ("server_max_window_bits=9", "server_max_window_bits=9"),
        ("client_max_window_bits", ""),
        ("client_max_window_bits=15", ""),
        ("client_max_window_bits=8", "client_max_window_bits=8"),
        ("client_max_window_bits=11", "client_max_window_bits=11"),
        (
            "client_max_window_bits=8; server_max_window_bits=9; client_no_context_takeover",
            "client_no_context_takeover; server_max_window_bits=9; client_max_window_bits=8",
        ),
    ],
)
def test_what_is_offered_is_granted(offer: str, expected: str) -> None:
    """Each parameter that a client offers is accepted as it is."""
    expected = "; ".join(filter(None, ["permessage-deflate", expected]))
    assert answer(f"permessage-deflate; {offer}") == expected


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        ("client_max_window_bits", "client_max_window_bits=10"),
        ("client_max_window_bits=15", "client_max_window_bits=10"),
        ("client_max_window_bits=9", "client_max_window_bits=9"),
        ("server_max_window_bits=15", "server_max_window_bits=11"),
        ("server_max_window_bits=10", "server_max_window_bits=10"),
        ("server_max_window_bits=13; client_max_window_bits", "server_max_window_bits=11; client_max_window_bits=10"),
    ],
)
def test_smaller_window_wins(offer: str, expected: str) -> None:
    """Of the configured and the offered window the smaller one is agreed on."""
    config = Deflate(server_max_window_bits=11, client_max_window_bits=10, server_no_context_takeover=False)
    assert answer(f"permessage-deflate; {offer}", config=config) == f"permessage-deflate; {expected}"


def test_what_was_not_offered_is_not_announced() -> None:
    """There are clients that fail for it. A server does what concerns itself all the same, and expects nothing more."""
    config = Deflate(
        server_max_window_bits=10,
        client_max_window_bits=9,
        server_no_context_takeover=True,
        client_no_context_takeover=True,
    )
    agreement = accept("permessage-deflate", config=config)
    assert agreement.header == "permessage-deflate"
    assert agreement.setting == Setting(10, 3, 5, keeps_context=False)
    assert (agreement.client_no_context_takeover, agreement.client_max_window_bits) == (False, 15)


@given(st.lists(st.sampled_from(PARAMETERS), unique_by=lambda text: text.partition("=")[0]), configs)
def test_an_answer_has_no_parameter_that_its_offer_has_not(parameters: list[str], config: Deflate) -> None:
    """Whatever is configured, and whatever is offered."""
    agreement = negotiate(["; ".join(["permessage-deflate", *parameters])], config)
    assert agreement is not None
    answered = {text.partition("=")[0] for text in agreement.header.split("; ")[1:]}
    assert answered <= {text.partition("=")[0] for text in parameters}


def test_client_that_cannot_limit_its_window() -> None:
    """Row 27: a client that did not offer to limit its window is not told to, and is inflated with 15 bits."""
    agreement = accept("permessage-deflate", config=Deflate(client_max_window_bits=9))
    assert "client_max_window_bits" not in agreement.header
    assert agreement.client_max_window_bits == 15


def test_configured_window_of_the_client() -> None:
    """Row 27: an offer of 15 bits does not override a smaller configured window."""
    agreement = accept("permessage-deflate; client_max_window_bits=15", config=Deflate(client_max_window_bits=10))
    assert agreement.header.endswith("client_max_window_bits=10")
    assert agreement.client_max_window_bits == 10


def test_window_that_zlib_cannot_make() -> None:
    """An offer that asks the server for a window of 8 bits is declined, since zlib would use 9."""
    assert answer("permessage-deflate; server_max_window_bits=8") is None
    assert answer("permessage-deflate; server_max_window_bits=8, permessage-deflate") == "permessage-deflate"


def test_setting() -> None:
    """The setting says how this side compresses; it is hashable and equal for equal agreements."""
    offers = "permessage-deflate; server_max_window_bits=10", 'permessage-deflate;server_max_window_bits="10"'
    first, second = (accept(offer, config=Deflate(level=5, mem_level=7)).setting for offer in offers)
    assert first == second == Setting(10, 5, 7, keeps_context=False)
    assert len({first, second}) == 1
    assert accept("permessage-deflate", config=WIDE).setting == Setting(15, 3, 5, keeps_context=True)
    asked = accept("permessage-deflate; server_no_context_takeover", config=WIDE)
    assert asked.setting == Setting(15, 3, 5, keeps_context=False)


# Row 24 and 25: the grammar


@pytest.mark.parametrize(
    "parameter",
    [
        "client_max_window_bits=abc",
        "client_max_window_bits=",
        'client_max_window_bits=""',
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "client_max_window_bits=0",
        "client_max_window_bits=-10",
        "client_max_window_bits=+10",
        "client_max_window_bits=1_0",
        "client_max_window_bits=010",
        "client_max_window_bits=10.0",
        "client_max_window_bits=\u0661\u0660",
        "client_max_window_bits=\xb9\xb2",
        "client_max_window_bits=" + "9" * 5000,
        'client_max_window_bits=" 10"',
        'client_max_window_bits="10',
        'client_max_window_bits=10"',
        'client_max_window_bits="10"x',
        "client_max_window_bits='10'",
        "client_max_window_bits=10 11",
        "client_max_window_bits==10",
        "client_max_window_bits=10=10",
        "server_max_window_bits",
        "server_max_window_bits=",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=1e1",
        "server_no_context_takeover=",
        "server_no_context_takeover=1",
        "server_no_context_takeover=true",
        'client_no_context_takeover=""',
        "client_no_context_takeover=10",
        "client_no_context_takeoverXYZ",
        "server_max_window_bitsX=10",
        "Client_Max_Window_Bits",
        "unknown",
        "unknown=1",
        "client_max_window_bits; client_max_window_bits",
        "client_max_window_bits=10; client_max_window_bits=10",
        "server_no_context_takeover; client_max_window_bits; server_no_context_takeover",
        "server_max_window_bits=10; server_max_window_bits=11",
        "",
        ";",
        "; client_max_window_bits",
        "client_max_window_bits;",
        "=10",
        '"client_max_window_bits"',
        "client max window bits",
        "client_max_window_bits\x0b",
        "\xa0client_max_window_bits",
        "\xff",
        "@",
    ],
)
def test_bad_parameter_declines_the_offer(parameter: str) -> None:
    """What is unknown, there twice, out of range or malformed declines its offer, and only that."""
    assert answer(f"permessage-deflate; {parameter}") is None
    follower = "permessage-deflate; server_no_context_takeover"
    if parameter.count('"') != 1:  # an open quote goes on to the end of the line
        assert answer(f"permessage-deflate; {parameter}, {follower}") == follower
    assert answer(f"permessage-deflate; {parameter}", follower) == follower


@pytest.mark.parametrize(
    "offer",
    [
        'permessage-deflate; client_max_window_bits="10"',
        'permessage-deflate; client_max_window_bits="1\\0"',
        'permessage-deflate; client_max_window_bits="\\1\\0"',
        "permessage-deflate;client_max_window_bits=10",
        "permessage-deflate ;client_max_window_bits = 10",
        "\tpermessage-deflate\t;\tclient_max_window_bits\t=\t10\t",
        ",, permessage-deflate; client_max_window_bits=10 ,",
        "foo, permessage-deflate; client_max_window_bits=10",
        'foo; bar="a, permessage-deflate, b", permessage-deflate; client_max_window_bits=10',
        'foo; bar="\\", permessage-deflate", permessage-deflate; client_max_window_bits=10',
        'foo bar, "baz", @, permessage-deflate; client_max_window_bits=10',
    ],
)
def test_forms_of_one_offer(offer: str) -> None:
    """Quotes, white space and neighbours, good or bad, make no difference to an offer."""
    assert answer(offer) == "permessage-deflate; client_max_window_bits=10"


def test_offer_over_several_lines() -> None:
    """The header may come in several lines, which are one list."""
    assert (
        answer("foo", "permessage-deflate; client_max_window_bits=9") == "permessage-deflate; client_max_window_bits=9"
    )


# Row 26: several offers


def test_declined_offer_leaves_no_trace() -> None:
    """Row 26: what a declined offer asked for is not in the answer to the next one."""
    declined = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=8"
    assert accept(f"{declined}, permessage-deflate") == accept("permessage-deflate")


def test_first_acceptable_offer_wins() -> None:
    """Row 26: the client's order is its order of preference."""
    offers = [f"permessage-deflate; server_max_window_bits={bits}" for bits in (99, 12, 10, 15)]
    assert answer(", ".join(offers)) == answer(*offers) == offers[1]


def test_every_offer_gets_a_fresh_agreement() -> None:
    """Negotiating leaves nothing behind in the configuration: the next client starts from the same place."""
    config = Deflate()
    before = negotiate(["permessage-deflate"], config)
    negotiate(["permessage-deflate; server_max_window_bits=9; client_max_window_bits=8"], config)
    assert negotiate(["permessage-deflate"], config) == before


# Anything


words = st.sampled_from(
    [
        "permessage-deflate",
        "server_no_context_takeover",
        "client_no_context_takeover",
        "server_max_window_bits",
        "client_max_window_bits",
        *(str(bits) for bits in range(7, 17)),
        *';;;,,=="\\ \t@',
        '"10"',
        "\xff",
        "foo",
    ]
)
headers = st.one_of(st.lists(words, max_size=20).map("".join), st.text(max_size=60), st.characters().map(str))


@given(st.lists(headers, max_size=4), configs)
def test_any_offer(offers: list[str], config: Deflate) -> None:
    """No offer raises, and what this side does itself keeps what the configuration demands."""
    agreement = negotiate(offers, config)
    if agreement is not None:
        assert 9 <= agreement.server_max_window_bits <= config.server_max_window_bits
        assert 8 <= agreement.client_max_window_bits <= 15
        assert agreement.server_no_context_takeover >= config.server_no_context_takeover
        assert agreement.header.isascii()


@given(configs, configs)
def test_client_and_server_agree(client: Deflate, server: Deflate) -> None:
    """What a client offers a server accepts, the client takes the answer, and each can read what the other sends."""
    theirs = accept(make_offer(client), config=server)
    ours = check_answer([theirs.header], client)
    assert ours is not None
    assert ours.setting is not None
    assert theirs.setting is not None
    # Each side inflates with a window that is large enough, and keeps a context where the other one does.
    assert ours.setting.window_bits <= theirs.client_max_window_bits
    assert ours.setting.keeps_context <= (not theirs.client_no_context_takeover)
    assert theirs.setting.window_bits <= ours.server_max_window_bits
    assert theirs.setting.keeps_context <= (not ours.server_no_context_takeover)
    # And each does what it is configured for, as far as it can be known.
    assert ours.setting.window_bits <= client.client_max_window_bits
    assert theirs.setting.window_bits <= server.server_max_window_bits
    assert ours.setting.keeps_context <= (not client.client_no_context_takeover)
    assert theirs.setting.keeps_context <= (not server.server_no_context_takeover)


@given(st.lists(headers, max_size=3), configs)
def test_any_answer(answers: list[str], config: Deflate) -> None:
    """An answer is agreed on, declines, or fails the handshake; nothing else comes out."""
    with suppress(HandshakeError):
        agreement = check_answer(answers, config)
        if agreement is not None and agreement.setting is not None:
            assert 9 <= agreement.setting.window_bits <= config.client_max_window_bits


@pytest.mark.parametrize("line", ['permessage-deflate; a="' + '\\"' * 8000, '"' * 16_000, "\\" * 16_000, ";=," * 5000])
def test_time_is_linear(line: str) -> None:
    """The longest head takes milliseconds, whatever it consists of."""
    start = time.perf_counter()
    assert negotiate([line], WIDE) is None
    assert time.perf_counter() - start < 0.5


# Row 28: the client's side


@pytest.mark.parametrize(
    "config", [WIDE, Deflate(), Deflate(client_max_window_bits=9, client_no_context_takeover=True, level=9)]
)
def test_offer(config: Deflate) -> None:
    """A client offers what browsers offer: every server has been tried with that."""
    assert make_offer(config) == "permessage-deflate; client_max_window_bits"


@pytest.mark.parametrize(
    ("config", "wish"),
    [
        (Deflate(server_max_window_bits=11), "server_no_context_takeover; server_max_window_bits=11"),
        (Deflate(server_max_window_bits=9, server_no_context_takeover=False), "server_max_window_bits=9"),
    ],
)
def test_offer_of_a_wish(config: Deflate, wish: str) -> None:
    """Who asks for a smaller window than the default offers that first, and what browsers offer behind it."""
    plain = "permessage-deflate; client_max_window_bits"
    assert make_offer(config) == f"permessage-deflate; {wish}; client_max_window_bits, {plain}"


def test_server_declines() -> None:
    """A server that answers nothing has declined."""
    assert check_answer([], WIDE) is None
    assert check_answer(["", " , "], WIDE) is None


@pytest.mark.parametrize(
    "parameters",
    [
        "client_max_window_bits",
        "client_max_window_bits=abc",
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "server_max_window_bits",
        "server_max_window_bits=7",
        "server_max_window_bits=99",
        "server_no_context_takeover=1",
        "unknown",
        "client_no_context_takeover; client_no_context_takeover",
        "server_max_window_bits=10; server_max_window_bits=10",
        "",
    ],
)
def test_bad_answer(parameters: str) -> None:
    """Row 28: an answer that breaks the rules fails the handshake."""
    with pytest.raises(HandshakeError, match="not offered") as caught:
        check_answer([f"permessage-deflate; {parameters}"], WIDE)
    assert caught.value.status == 101


@pytest.mark.parametrize("name", ["server_no_context_takeover", "client_no_context_takeover"])
@pytest.mark.parametrize("value", ["1", "yes", '""'])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_flag_with_a_value_is_malformed_whatever_is_configured(name: str, value: str, wanted: bool) -> None:
    """It declines an offer and fails an answer, also where this side wants the flag anyway."""
    config = Deflate(server_max_window_bits=15, server_no_context_takeover=wanted, client_no_context_takeover=wanted)
    parameters = f"permessage-deflate; server_no_context_takeover; {name}={value}"
    if name.startswith("server"):
        parameters = f"permessage-deflate; {name}={value}"
    assert negotiate([parameters], config) is None
    with pytest.raises(HandshakeError, match="not offered so: "):
        check_answer([parameters], config)


@pytest.mark.parametrize(
    "answers",
    [
        ["permessage-deflate, permessage-deflate"],
        ["permessage-deflate", "permessage-deflate"],
        ["foo"],
        ["permessage-deflate, foo"],
        ["@"],
    ],
)
def test_answer_with_something_else(answers: list[str]) -> None:
    """Row 28: an answer has the one extension that was offered, once."""
    with pytest.raises(HandshakeError):
        check_answer(answers, WIDE)


RECORDED = {
    "nothing at all": "permessage-deflate",
    "a fixed line that has no context": "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "the same in the other order": "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
    "an echo without the flags": "permessage-deflate; client_max_window_bits=12; server_max_window_bits=12",
    "small windows": "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
    "the largest windows": "permessage-deflate; client_max_window_bits=15; server_max_window_bits=15",
    "the server has no context": "permessage-deflate; server_no_context_takeover",
    "the client must have none": "permessage-deflate; client_no_context_takeover",
    "no context and a small window": "permessage-deflate; client_no_context_takeover; server_max_window_bits=12",
    "the smallest windows": "permessage-deflate; server_max_window_bits=8; client_max_window_bits=8",
    "the client's smallest window": "permessage-deflate; server_no_context_takeover; client_max_window_bits=8",
    "everything": "permessage-deflate; server_no_context_takeover; client_no_context_takeover;"
    " server_max_window_bits=10; client_max_window_bits=10",
    "no space": "permessage-deflate;server_no_context_takeover;client_max_window_bits=15",
    "quotes": 'permessage-deflate; client_max_window_bits="11"',
}
"""What servers have been seen to answer to a browser's offer."""

CONFIGS = {
    "defaults": Deflate(),
    "wide": WIDE,
    "narrow": Deflate(server_max_window_bits=9, client_max_window_bits=9, client_no_context_takeover=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("header", RECORDED.values(), ids=RECORDED)
def test_recorded_answers(header: str, config: Deflate) -> None:
    """Whatever a client would like, it agrees to all that it can do, and does no more than the server allows."""
    agreement = check_answer([header], config)
    assert agreement is not None
    said = dict(re.findall(r"(\w+_bits)=\D?(\d+)", header))
    assert agreement.server_max_window_bits == int(said.get("server_max_window_bits", 15))
    assert agreement.server_no_context_takeover == ("server_no_context_takeover" in header)
    allowed = int(said.get("client_max_window_bits", 15))
    if agreement.setting is None:
        assert allowed == 8
    else:
        assert agreement.setting.window_bits == min(allowed, config.client_max_window_bits)
        silent = "client_no_context_takeover" in header or config.client_no_context_takeover
        assert agreement.setting.keeps_context is not silent


def test_a_window_of_the_client_that_zlib_cannot_make() -> None:
    """Where the server allows the client 8 bits, that sends its messages as they are, and inflates what comes."""
    agreement = check_answer(["permessage-deflate; client_max_window_bits=8"], Deflate())
    assert agreement is not None
    assert agreement.setting is None
    assert (agreement.client_max_window_bits, agreement.server_max_window_bits) == (8, 15)


def test_client_does_without_a_word_what_is_its_own() -> None:
    """A smaller window and no context need nobody's consent."""
    config = Deflate(client_max_window_bits=10, client_no_context_takeover=True)
    agreement = check_answer(["permessage-deflate; client_max_window_bits=13"], config)
    assert agreement is not None
    assert agreement.setting == Setting(10, 3, 5, keeps_context=False)
