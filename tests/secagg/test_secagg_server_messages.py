"""Every state of the server against every message: a wrong one makes its sender a drop-out, and nobody else."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_federation import MODEL, STAGES, Federation, Reply, at, disturbances, make_federation, refused

from secure_fed.secagg import Code, Stage
from secure_fed.secagg.masking import slice_digest
from secure_fed.secagg.messages import Advertise, Confirm, Masked, Release, ReleasedShares, ShareBundle

LAYOUT = {"fusion": (8, {0, 1, 2, 3, 4}), "image": (3, {0, 1, 2})}
OTHERS = {"another round": {"round_": 2}, "another run": {"run": "other"}, "another attempt": {"attempt": 1}}
ME = "site01"

Forge = Callable[[Federation, Reply], Reply]


# Every state against every message of the same session, in their honest form


@functools.cache
def history() -> tuple[dict[Stage, Federation], dict[Stage, Reply]]:
    """One honest session: as it was in each stage, and what a client answered in each."""
    federation, waiting = make_federation(4), {}
    for stage in STAGES:
        if stage is Stage.MASK:
            federation.server.bind_model(MODEL)
        waiting[stage] = federation.fork()
        federation.collect()
        federation.server.advance()
    return waiting, {stage: reply for stage, name, reply in federation.received if name == ME}


@pytest.mark.parametrize("message", STAGES)
@pytest.mark.parametrize("state", STAGES)
def test_server_takes_each_message_in_its_own_stage_only(state, message):
    waiting, replies = history()
    federation = waiting[state].fork()
    assert federation.deliver(ME, replies[message]) == (state is message)
    assert federation.server.faults == ({} if state is message else {ME: Code.MALFORMED_MESSAGE})


@pytest.mark.parametrize("message", STAGES)
@pytest.mark.parametrize("end", [Stage.DONE, Stage.FAILED])
def test_server_takes_nothing_after_the_end(end, message):
    waiting, replies = history()
    federation = waiting[Stage.UNMASK].fork()
    if end is Stage.DONE:
        federation.play()
    else:
        with refused(Code.BELOW_THRESHOLD):
            federation.server.advance()
    assert federation.server.stage is end
    with refused(Code.WRONG_STAGE):
        federation.deliver(ME, replies[message])
    with refused(Code.WRONG_STAGE):
        federation.server.advance()


# Every stage against messages that are not what they should be


def changed(message: type, **changes: object) -> Forge:
    """Other fields under the old signature."""
    return lambda federation, reply: Reply(
        dataclasses.replace(message.from_bytes(reply.message), **changes).to_bytes(), reply.slices
    )


def resigned(message: type, **changes: object) -> Forge:
    """Other fields under a valid signature of the sender."""

    def forge(federation: Federation, reply: Reply) -> Reply:
        draft = dataclasses.replace(message.from_bytes(reply.message), **changes)
        signature = federation.signers[ME](draft.statement())
        return Reply(dataclasses.replace(draft, signature=signature).to_bytes(), reply.slices)

    return forge


def nothing(federation: Federation, reply: Reply) -> Reply:
    return Reply(b"", reply.slices)


def from_another(stage: Stage, **changes: object) -> Forge:
    """The same client's whole reply in another session."""

    def forge(federation: Federation, reply: Reply) -> Reply:
        other = at(stage, 5, 0, LAYOUT, **changes)
        return other.reply(ME, stage, other.server.request(ME))

    return forge


def of_another(stage: Stage) -> Forge:
    """What another member answered, in its own name."""
    return lambda federation, reply: federation.fork().reply("site02", stage, federation.server.request("site02"))


def common(stage: Stage) -> dict[str, tuple[Code, Forge]]:
    return {
        "nothing": (Code.MALFORMED_MESSAGE, nothing),
        **{label: (Code.WRONG_SESSION, from_another(stage, **other)) for label, other in OTHERS.items()},
    }


ADVERTISE = {
    **common(Stage.ADVERTISE),
    "in the name of another": (Code.UNKNOWN_MEMBER, of_another(Stage.ADVERTISE)),
    "under another signature": (Code.BAD_SIGNATURE, changed(Advertise, cipher_key=b"\x09" * 32)),
    "another basis": (Code.MODEL_MISMATCH, resigned(Advertise, basis=bytes(32))),
    "key of another size": (Code.MALFORMED_MESSAGE, resigned(Advertise, mask_key=bytes(33))),
    "key of low order": (Code.BAD_KEY, resigned(Advertise, mask_key=bytes(32))),
    "commitment too few": (Code.WRONG_COMPONENTS, resigned(Advertise, commitments={"fusion": bytes(32)})),
    "commitment to nothing it owns": (
        Code.WRONG_COMPONENTS,
        resigned(Advertise, commitments=dict.fromkeys(("fusion", "image", "text"), bytes(32))),
    ),
    "slices beside it": (
        Code.MALFORMED_MESSAGE,
        lambda federation, reply: Reply(reply.message, {"fusion": np.zeros(27, dtype=np.uint8)}),
    ),
}


def sealing(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Forge:
    def forge(federation: Federation, reply: Reply) -> Reply:
        bundle = ShareBundle.from_bytes(reply.message)
        return Reply(dataclasses.replace(bundle, sealed=change(dict(bundle.sealed))).to_bytes())

    return forge


SHARE = {
    **common(Stage.SHARE),
    "in the name of another": (Code.WRONG_SESSION, of_another(Stage.SHARE)),
    "another U1": (Code.WRONG_SESSION, changed(ShareBundle, u1_hash=bytes(32))),
    "a holder omitted": (Code.WRONG_SHARES, sealing(lambda to: {k: v for k, v in to.items() if k != "site02"})),
    "a share for itself": (Code.WRONG_SHARES, sealing(lambda to: {**to, ME: to["site02"]})),
    "a share for a stranger": (Code.WRONG_SHARES, sealing(lambda to: {**to, "site06": to["site02"]})),
    "no share": (Code.WRONG_SHARES, sealing(lambda to: {})),
}


def beside(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray] | None]) -> Forge:
    """Other slices beside the same message."""
    return lambda federation, reply: Reply(reply.message, change(dict(reply.slices)))


def flipped(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    data[0] ^= 1
    return data


def signed_and_sent(change: Callable[[np.ndarray], np.ndarray], component: str = "fusion") -> Forge:
    """A slice of another form, whose digest the sender signed."""

    def forge(federation: Federation, reply: Reply) -> Reply:
        slices = {**reply.slices, component: change(reply.slices[component])}
        digests = {name: slice_digest(data) for name, data in slices.items()}
        return Reply(resigned(Masked, digests=digests)(federation, reply).message, slices)

    return forge


MASK = {
    **common(Stage.MASK),
    "in the name of another": (Code.WRONG_SESSION, of_another(Stage.MASK)),
    "under another signature": (Code.BAD_SIGNATURE, changed(Masked, signature=bytes(64))),
    "another model": (Code.WRONG_SESSION, resigned(Masked, sid=bytes(32))),
    "no slices": (Code.VECTOR_MISMATCH, beside(lambda slices: None)),
    "a slice omitted": (Code.VECTOR_MISMATCH, beside(lambda slices: {"fusion": slices["fusion"]})),
    "a slice too many": (Code.VECTOR_MISMATCH, beside(lambda slices: {**slices, "text": slices["image"]})),
    "a digest omitted": (Code.VECTOR_MISMATCH, resigned(Masked, digests={"fusion": bytes(32)})),
    "a slice changed": (
        Code.VECTOR_MISMATCH,
        beside(lambda slices: {**slices, "fusion": flipped(slices["fusion"])}),
    ),
    "slices swapped": (
        Code.VECTOR_MISMATCH,
        beside(lambda slices: {"fusion": slices["image"], "image": slices["fusion"]}),
    ),
    "a slice too short": (Code.VECTOR_MISMATCH, signed_and_sent(lambda data: data[:-1])),
    "the second slice too short": (Code.VECTOR_MISMATCH, signed_and_sent(lambda data: data[:-1], "image")),
    "a slice too long": (Code.VECTOR_MISMATCH, signed_and_sent(lambda data: np.append(data, np.uint8(0)))),
    "a slice of the other width": (Code.VECTOR_MISMATCH, signed_and_sent(lambda data: np.zeros(36, dtype=np.uint8))),
    "an empty slice": (Code.VECTOR_MISMATCH, signed_and_sent(lambda data: data[:0])),
    "a slice of two axes": (
        Code.VECTOR_MISMATCH,
        beside(lambda slices: {**slices, "fusion": slices["fusion"].reshape(1, -1)}),
    ),
    "a slice of another type": (
        Code.VECTOR_MISMATCH,
        beside(lambda slices: {**slices, "fusion": slices["fusion"].view(np.int8)}),
    ),
}

CONFIRM = {
    **common(Stage.CONFIRM),
    "in the name of another": (Code.WRONG_SESSION, of_another(Stage.CONFIRM)),
    "under another signature": (Code.BAD_SIGNATURE, changed(Confirm, signature=bytes(64))),
    "a signature of another size": (Code.MALFORMED_MESSAGE, changed(Confirm, signature=bytes(65))),
}


def releasing(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Forge:
    def forge(federation: Federation, reply: Reply) -> Reply:
        release = Release.from_bytes(reply.message)
        return Reply(dataclasses.replace(release, released=change(dict(release.released))).to_bytes())

    return forge


def with_shares(change: Callable[[ReleasedShares], dict[str, object]]) -> Forge:
    """Other shares of site02 than those asked for."""

    def replaced(released: dict[str, bytes]) -> dict[str, bytes]:
        item = ReleasedShares.from_bytes(released["site02"])
        return {**released, "site02": dataclasses.replace(item, **change(item)).to_bytes()}

    return releasing(replaced)


UNMASK = {
    **common(Stage.UNMASK),
    "in the name of another": (Code.WRONG_SESSION, of_another(Stage.UNMASK)),
    "a dealer omitted": (Code.WRONG_SHARES, releasing(lambda of: {k: v for k, v in of.items() if k != "site02"})),
    "a stranger's share": (Code.WRONG_SHARES, releasing(lambda of: {**of, "site06": of["site02"]})),
    "no dealer": (Code.WRONG_SHARES, releasing(lambda of: {})),
    "no shares of a dealer": (Code.MALFORMED_MESSAGE, releasing(lambda of: {**of, "site02": b""})),
    "a share omitted": (Code.WRONG_SHARES, with_shares(lambda item: {"shares": {}})),
    "a share too many": (
        Code.WRONG_SHARES,
        with_shares(lambda item: {"shares": {**item.shares, "mask-key": bytes(33)}}),
    ),
    "a hidden hash omitted": (Code.WRONG_SHARES, with_shares(lambda item: {"hidden": {}})),
    "a share of another size": (
        Code.MALFORMED_MESSAGE,
        with_shares(lambda item: {"shares": dict.fromkeys(item.shares, bytes(32))}),
    ),
    "a share beyond the field": (
        Code.MALFORMED_MESSAGE,
        with_shares(lambda item: {"shares": dict.fromkeys(item.shares, b"\xff" * 33)}),
    ),
}

TABLE = [
    pytest.param(stage, code, forge, id=f"{stage}: {label}")
    for stage, cases in zip(STAGES, (ADVERTISE, SHARE, MASK, CONFIRM, UNMASK), strict=True)
    for label, (code, forge) in cases.items()
]


@functools.cache
def waiting_in(stage: Stage) -> Federation:
    return at(stage, 5, 0, LAYOUT)


@pytest.mark.parametrize(("stage", "code", "forge"), TABLE)
def test_wrong_message_makes_its_sender_a_dropout_and_the_sum_is_that_of_the_others(stage, code, forge):
    federation = waiting_in(stage).fork()
    honest = federation.reply(ME, stage, federation.server.request(ME))
    assert not federation.deliver(ME, forge(federation, honest))
    assert federation.server.faults == {ME: code}
    assert not federation.deliver(ME, honest)  # there is no second try
    federation.collect(absent={ME})
    federation.server.advance()
    federation.play(drops={later: {ME} for later in STAGES})
    for name, opened in federation.server.sums().items():
        assert (ME in opened.contributors) == (stage in (Stage.CONFIRM, Stage.UNMASK))
        np.testing.assert_array_equal(opened.values, federation.plain_sum(name, opened.contributors))


def test_message_of_somebody_outside_the_roster_or_the_stage_is_not_taken():
    federation = waiting_in(Stage.SHARE).fork()
    reply = federation.reply(ME, Stage.SHARE, federation.server.request(ME))
    assert not federation.server.receive("site99", reply.message)
    federation.collect(absent={ME})
    federation.server.advance()
    assert not federation.deliver(ME, reply)
    assert federation.server.faults == {"site99": Code.UNKNOWN_MEMBER, ME: Code.UNKNOWN_MEMBER}
    with refused(Code.UNKNOWN_MEMBER):
        federation.server.request(ME)


@pytest.mark.parametrize("stage", STAGES)
def test_duplicate_answer_is_ignored_and_noted(stage):
    federation = waiting_in(stage).fork()
    reply = federation.reply(ME, stage, federation.server.request(ME))
    assert federation.deliver(ME, reply)
    assert not federation.deliver(ME, reply)
    assert federation.server.faults == {ME: Code.DUPLICATE_MESSAGE}
    federation.collect(absent={ME})
    federation.server.advance()
    federation.play()
    opened = federation.server.sums()["fusion"]
    assert ME in opened.contributors
    np.testing.assert_array_equal(opened.values, federation.plain_sum("fusion", opened.contributors))


@pytest.mark.parametrize("stage", STAGES)
def test_message_of_another_version_is_refused_by_name(stage):
    federation = waiting_in(stage).fork()
    reply = federation.reply(ME, stage, federation.server.request(ME))
    version = b"i" + (2).to_bytes(8, "big") + b"\x00\x01"
    assert version in reply.message
    newer = Reply(reply.message.replace(version, version[:-1] + b"\x02", 1), reply.slices)
    assert not federation.deliver(ME, newer)
    assert federation.server.faults[ME] == Code.UNSUPPORTED_VERSION


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.sampled_from(STAGES), disturbances())
def test_server_treats_any_disturbed_message_as_a_dropout_with_a_fixed_code(stage, disturb):
    federation = waiting_in(stage).fork()
    federation.collect(tamper=lambda name, raw: disturb(raw) if name == "site02" else raw)
    if "site02" not in federation.server.answered:
        assert federation.server.faults["site02"] in set(Code)
    else:
        # The server cannot look into a sealed share, and a released share is checked only when it is used.
        assert stage in (Stage.SHARE, Stage.UNMASK)
    federation.server.advance()
    federation.play(tolerate={Code.SHARE_UNREADABLE})
    opened = federation.server.sums()["fusion"]
    np.testing.assert_array_equal(opened.values, federation.plain_sum("fusion", opened.contributors))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.sampled_from(("fusion", "image")), disturbances())
def test_server_treats_any_disturbed_slice_as_a_dropout(component, disturb):
    federation = waiting_in(Stage.MASK).fork()
    reply = federation.reply(ME, Stage.MASK, federation.server.request(ME))
    data = np.frombuffer(disturb(reply.slices[component].tobytes()), dtype=np.uint8)
    assert not federation.deliver(ME, Reply(reply.message, {**reply.slices, component: data}))
    assert federation.server.faults == {ME: Code.VECTOR_MISMATCH}
