"""Every state of a client against every message: only the right one goes through, whatever the others look like."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_federation import BASIS, MODEL, STAGES, Federation, at, disturbances, make_federation, refused

from secure_fed.errors import SecAggError
from secure_fed.secagg import Code, Levels, Quantiser, Stage
from secure_fed.secagg.messages import (
    Advertise,
    Advertisements,
    Confirmations,
    ShareDelivery,
    Survivors,
)

LAYOUT = {"fusion": (8, {0, 1, 2, 3, 4}), "image": (3, {0, 1, 2})}
OTHERS = {"another round": {"round_": 2}, "another run": {"run": "other"}, "another attempt": {"attempt": 1}}
ME = "site01"

Forge = Callable[[Federation, bytes], bytes]


# Every state against every message of the same session, in their honest form


@functools.cache
def history() -> tuple[Federation, dict[Stage, bytes], dict[Stage, bytes]]:
    """One honest session: the states of a client by stage, and what it was asked in each."""
    federation = make_federation(4)
    states, requests = {}, {}
    for stage in STAGES:
        if stage is Stage.MASK:
            federation.server.bind_model(MODEL)
        states[stage], requests[stage] = federation.stored[ME], federation.server.request(ME)
        federation.collect()
        federation.server.advance()
    states[Stage.DONE] = federation.stored[ME]
    federation.stored[ME] = states[Stage.SHARE]
    failing = federation.client(ME)
    with pytest.raises(SecAggError):
        failing.share(b"")
    states[Stage.FAILED] = failing.to_bytes()
    return federation, states, requests


@pytest.mark.parametrize("message", STAGES)
@pytest.mark.parametrize("state", [*STAGES, Stage.DONE, Stage.FAILED])
def test_client_answers_each_message_in_its_own_stage_only_and_is_otherwise_left_as_it_was(state, message):
    federation, states, requests = history()
    federation = federation.fork()
    federation.stored[ME] = states[state]
    session = federation.client(ME)
    if state is message:
        federation.step(session, message, requests[message])
        assert session.stage is [*STAGES, Stage.DONE][STAGES.index(state) + 1]
    else:
        with refused(Code.WRONG_STAGE):
            federation.step(session, message, requests[message])
        assert session.to_bytes() == states[state]


# Every stage against messages that are not what they should be


def resign(federation: Federation, raw: bytes, **changes: object) -> bytes:
    """A member's advertisement with other content, under its own valid signature."""
    draft = dataclasses.replace(Advertise.from_bytes(raw), **changes)
    return dataclasses.replace(draft, signature=federation.signers[draft.sender](draft.statement())).to_bytes()


def relisted(change: Callable[[Federation, list[bytes]], list[bytes]]) -> Forge:
    def forge(federation: Federation, request: bytes) -> bytes:
        return Advertisements(
            tuple(change(federation, list(Advertisements.from_bytes(request).advertisements)))
        ).to_bytes()

    return forge


def second_changed(**changes: object) -> Forge:
    """The advertisement of site02 with other content, validly signed."""
    return relisted(lambda federation, raw: [raw[0], resign(federation, raw[1], **changes), *raw[2:]])


def from_another(stage: Stage, **changes: object) -> Forge:
    """The server's whole message of another session."""
    return lambda federation, request: at(stage, 5, 0, LAYOUT, **changes).server.request(ME)


def stranger(federation: Federation, raw: list[bytes]) -> list[bytes]:
    larger = make_federation(6, 0, LAYOUT)
    return [*raw, larger.answer("site06", Stage.ADVERTISE, b"")]


SHARE = {
    "nothing": (Code.MALFORMED_MESSAGE, lambda federation, request: b""),
    "empty": (Code.COHORT_TOO_SMALL, relisted(lambda federation, raw: [])),
    "too few": (Code.COHORT_TOO_SMALL, relisted(lambda federation, raw: raw[:2])),
    "own omitted": (Code.UNKNOWN_MEMBER, relisted(lambda federation, raw: raw[1:])),
    "a stranger": (Code.UNKNOWN_MEMBER, relisted(stranger)),
    "twice the same": (Code.DUPLICATE_MEMBER, relisted(lambda federation, raw: [raw[0], *raw])),
    "reordered": (Code.MALFORMED_MESSAGE, relisted(lambda federation, raw: [raw[0], raw[2], raw[1], *raw[3:]])),
    "no advertisement": (Code.MALFORMED_MESSAGE, relisted(lambda federation, raw: [*raw, b"advertisement"])),
    "cut off": (Code.MALFORMED_MESSAGE, relisted(lambda federation, raw: [*raw[:4], raw[4][:-1]])),
    "key of another size": (Code.MALFORMED_MESSAGE, second_changed(mask_key=bytes(31))),
    "basis of another size": (Code.MALFORMED_MESSAGE, second_changed(basis=bytes(31))),
    "key of low order": (Code.BAD_KEY, second_changed(cipher_key=bytes(32))),
    "another basis": (Code.MODEL_MISMATCH, second_changed(basis=bytes(32))),
    "another kid": (Code.WRONG_SESSION, second_changed(kid=bytes(32))),
    "too few commitments": (Code.WRONG_COMPONENTS, second_changed(commitments={"fusion": bytes(32)})),
    "too many commitments": (
        Code.WRONG_COMPONENTS,
        second_changed(commitments=dict.fromkeys(("fusion", "image", "text"), bytes(32))),
    ),
    "own changed": (
        Code.OWN_KEY_CHANGED,
        relisted(lambda federation, raw: [resign(federation, raw[0], cipher_key=b"\x09" * 32), *raw[1:]]),
    ),
    "under another signature": (
        Code.BAD_SIGNATURE,
        relisted(
            lambda federation, raw: [
                raw[0],
                dataclasses.replace(Advertise.from_bytes(raw[1]), signature=bytes(64)).to_bytes(),
                *raw[2:],
            ]
        ),
    ),
    "in the name of another": (
        Code.BAD_SIGNATURE,
        relisted(
            lambda federation, raw: [
                raw[0],
                dataclasses.replace(Advertise.from_bytes(raw[2]), sender="site02").to_bytes(),
                *raw[2:],
            ]
        ),
    ),
    **{label: (Code.WRONG_SESSION, from_another(Stage.SHARE, **other)) for label, other in OTHERS.items()},
    **{
        f"one of {label}": (
            Code.WRONG_SESSION,
            relisted(
                lambda federation, raw, other=other: [
                    raw[0],
                    at(Stage.SHARE, 5, 0, LAYOUT, **other).server._advertisements["site02"],
                    *raw[2:],
                ]
            ),
        )
        for label, other in OTHERS.items()
    },
}


def redelivered(change: Callable[[ShareDelivery], dict[str, object]]) -> Forge:
    def forge(federation: Federation, request: bytes) -> bytes:
        delivery = ShareDelivery.from_bytes(request)
        return dataclasses.replace(delivery, **change(delivery)).to_bytes()

    return forge


def sealed_by_second(change: Callable[[bytes], bytes]) -> Forge:
    return redelivered(lambda sent: {"sealed": {**sent.sealed, "site02": change(sent.sealed["site02"])}})


def shortened(delivery: ShareDelivery, members: tuple[str, ...]) -> dict[str, object]:
    """A shorter U2, with the sealed shares that go with it."""
    return {"u2": members, "sealed": {name: sealed for name, sealed in delivery.sealed.items() if name in members}}


def without(sealed: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {dealer: content for dealer, content in sealed.items() if dealer != name}


MASK = {
    "nothing": (Code.MALFORMED_MESSAGE, lambda federation, request: b""),
    "too few": (Code.COHORT_TOO_SMALL, redelivered(lambda sent: shortened(sent, ("site01", "site02")))),
    "itself omitted": (Code.UNKNOWN_MEMBER, redelivered(lambda sent: {"u2": sent.u2[1:]})),
    "a stranger": (Code.UNKNOWN_MEMBER, redelivered(lambda sent: {"u2": (*sent.u2, "site06")})),
    "a member listed twice": (Code.DUPLICATE_MEMBER, redelivered(lambda sent: {"u2": (sent.u2[0], *sent.u2)})),
    "members reordered": (Code.MALFORMED_MESSAGE, redelivered(lambda sent: {"u2": sent.u2[::-1]})),
    "a share omitted": (Code.WRONG_SHARES, redelivered(lambda sent: {"sealed": without(sent.sealed, "site02")})),
    "a share too many": (
        Code.WRONG_SHARES,
        redelivered(lambda sent: {"sealed": {**sent.sealed, ME: sent.sealed["site02"]}}),
    ),
    "a dealer outside of U2": (Code.WRONG_SHARES, redelivered(lambda sent: {"u2": sent.u2[:4]})),
    "a share changed": (Code.SHARE_UNREADABLE, sealed_by_second(lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]))),
    "a share cut off": (Code.SHARE_UNREADABLE, sealed_by_second(lambda sealed: sealed[:20])),
    "a share of nothing": (Code.SHARE_UNREADABLE, sealed_by_second(lambda sealed: b"")),
    "a share extended": (Code.SHARE_UNREADABLE, sealed_by_second(lambda sealed: sealed + b"\0")),
    "shares swapped": (
        Code.SHARE_UNREADABLE,
        redelivered(
            lambda sent: {"sealed": {**sent.sealed, "site02": sent.sealed["site03"], "site03": sent.sealed["site02"]}}
        ),
    ),
    "a share for another": (
        Code.SHARE_UNREADABLE,
        lambda federation, request: redelivered(
            lambda sent: {"sealed": {**sent.sealed, "site02": federation.server._sealed["site02"]["site03"]}}
        )(federation, request),
    ),
    **{label: (Code.WRONG_SESSION, from_another(Stage.MASK, **other)) for label, other in OTHERS.items()},
    **{
        f"shares of {label}": (
            Code.SHARE_UNREADABLE,
            lambda federation, request, other=other: dataclasses.replace(
                ShareDelivery.from_bytes(from_another(Stage.MASK, **other)(federation, request)),
                kid=federation.context.kid,
            ).to_bytes(),
        )
        for label, other in OTHERS.items()
    },
}


def listing(change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Forge:
    def forge(federation: Federation, request: bytes) -> bytes:
        sent = Survivors.from_bytes(request)
        return Survivors(sent.sid, change(sent.survivors)).to_bytes()

    return forge


def under_another_model(federation: Federation, request: bytes) -> bytes:
    sid = federation.context.sid(federation.server._u1_hash, federation.server._u2, bytes(32))
    return Survivors(sid, Survivors.from_bytes(request).survivors).to_bytes()


CONFIRM = {
    "nothing": (Code.MALFORMED_MESSAGE, lambda federation, request: b""),
    "nobody": (Code.COHORT_TOO_SMALL, listing(lambda members: ())),
    "too few": (Code.COHORT_TOO_SMALL, listing(lambda members: members[:2])),
    "itself alone": (Code.COHORT_TOO_SMALL, listing(lambda members: members[:1])),
    "itself omitted": (Code.NOT_A_SURVIVOR, listing(lambda members: members[1:])),
    "a stranger": (Code.SURVIVOR_UNKNOWN, listing(lambda members: (*members, "site06"))),
    "a member listed twice": (Code.DUPLICATE_MEMBER, listing(lambda members: (members[0], *members))),
    "reordered": (Code.MALFORMED_MESSAGE, listing(lambda members: members[::-1])),
    "another model": (Code.WRONG_SESSION, under_another_model),
    **{label: (Code.WRONG_SESSION, from_another(Stage.CONFIRM, **other)) for label, other in OTHERS.items()},
}


def signed(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Forge:
    def forge(federation: Federation, request: bytes) -> bytes:
        sent = Confirmations.from_bytes(request)
        return Confirmations(sent.sid, change(dict(sent.signatures))).to_bytes()

    return forge


UNMASK = {
    "nothing": (Code.MALFORMED_MESSAGE, lambda federation, request: b""),
    "no signature": (Code.TOO_FEW_SIGNATURES, signed(lambda by: {})),
    "too few signatures": (Code.TOO_FEW_SIGNATURES, signed(lambda by: dict(list(by.items())[:2]))),
    "a stranger's signature": (Code.SURVIVOR_UNKNOWN, signed(lambda by: {**by, "site06": by["site02"]})),
    "one signature for two": (Code.BAD_SIGNATURE, signed(lambda by: {**by, "site03": by["site02"]})),
    "an invalid signature": (Code.BAD_SIGNATURE, signed(lambda by: {**by, "site02": bytes(64)})),
    "a signature of another size": (Code.MALFORMED_MESSAGE, signed(lambda by: {**by, "site02": bytes(63)})),
    **{label: (Code.WRONG_SESSION, from_another(Stage.UNMASK, **other)) for label, other in OTHERS.items()},
    **{
        f"signatures of {label}": (
            Code.BAD_SIGNATURE,
            lambda federation, request, other=other: Confirmations(
                Confirmations.from_bytes(request).sid,
                Confirmations.from_bytes(from_another(Stage.UNMASK, **other)(federation, request)).signatures,
            ).to_bytes(),
        )
        for label, other in OTHERS.items()
    },
}

TABLE = [
    pytest.param(stage, code, forge, id=f"{stage}: {label}")
    for stage, cases in {Stage.SHARE: SHARE, Stage.MASK: MASK, Stage.CONFIRM: CONFIRM, Stage.UNMASK: UNMASK}.items()
    for label, (code, forge) in cases.items()
]


@functools.cache
def waiting(stage: Stage) -> Federation:
    return at(stage, 5, 0, LAYOUT)


@pytest.mark.parametrize(("stage", "code", "forge"), TABLE)
def test_wrong_message_is_refused_by_code_and_ends_the_session_without_its_secrets(stage, code, forge):
    federation = waiting(stage).fork()
    session = federation.client(ME)
    request = federation.server.request(ME)
    with refused(code):
        federation.step(session, stage, forge(federation, request))
    assert session.stage is Stage.FAILED
    state = session._state
    assert not any((state.cipher_private, state.mask_private, state.seeds, state.held))
    with refused(Code.WRONG_STAGE):
        federation.step(session, stage, request)


def test_basis_and_model_that_are_no_hash_are_refused():
    with refused(Code.MODEL_NOT_BOUND):
        make_federation().client(ME).advertise(BASIS[:31])
    federation = waiting(Stage.MASK).fork()
    with refused(Code.MODEL_NOT_BOUND):
        federation.client(ME).mask(federation.server.request(ME), federation.sources(ME), b"")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (Levels(np.zeros(8, dtype=np.uint32), 12), Code.OUT_OF_RANGE),
        (Levels(np.zeros(9, dtype=np.uint32), 16), Code.VECTOR_MISMATCH),
        (Quantiser(np.full(8, np.nan, dtype=np.float32), 1.0, 16, bytes(32)), Code.NOT_FINITE),
    ],
    ids=["other bits", "other size", "not finite"],
)
def test_source_that_does_not_fit_or_cannot_be_read_ends_the_session_and_nothing_leaves(source, code):
    federation = waiting(Stage.MASK).fork()
    session = federation.client(ME)
    slices = {**federation.sources(ME), "fusion": source}
    with refused(code):
        session.mask(federation.server.request(ME), slices, MODEL)
    assert session.stage is Stage.FAILED
    assert not any((session._state.mask_private, session._state.seeds, session._state.held))


@pytest.mark.parametrize("slices", [{"fusion"}, {"fusion", "image", "text"}], ids=["too few", "too many"])
def test_vector_of_other_components_than_the_client_owns_never_leaves(slices):
    federation = waiting(Stage.MASK).fork()
    sources = {**federation.sources(ME), "text": Levels(np.zeros(3, dtype=np.uint32), 16)}
    with refused(Code.VECTOR_MISMATCH):
        federation.client(ME).mask(federation.server.request(ME), {name: sources[name] for name in slices}, MODEL)


def test_dealer_left_without_enough_neighbours_does_not_share():
    """Only where the graph says so; in the complete graph the quorum sees to it."""
    federation = waiting(Stage.SHARE).fork()
    session = federation.client(ME)
    session._neighbours = lambda: frozenset({"site02"})
    with refused(Code.COHORT_TOO_SMALL):
        federation.step(session, Stage.SHARE, federation.server.request(ME))


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.sampled_from(STAGES[1:]), disturbances())
def test_client_refuses_any_disturbed_message_with_a_fixed_code_and_nothing_else(stage, disturb):
    federation = waiting(stage).fork()
    with pytest.raises(SecAggError) as caught:
        federation.answer(ME, stage, disturb(federation.server.request(ME)))
    assert caught.value.code in set(Code)
