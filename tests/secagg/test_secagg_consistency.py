"""Everybody sees the same: one basis, one advertisement a member, one list of survivors; and what halts a client."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from secagg_federation import BASIS, STAGES, Federation, at, bind, make_context, make_federation, refused, survivors_of

from secure_fed.errors import SecAggError
from secure_fed.secagg import HALTING, ClientSession, Code, Stage
from secure_fed.secagg.messages import Advertise, Advertisements, Survivors

OTHER_BASIS = hashlib.sha256(b"another model").digest()
ME = "site01"


# The basis


def test_server_that_gives_other_models_to_some_members_is_found_before_anything_is_shared_or_masked():
    federation = make_federation(5)
    federation = Federation(federation.context, federation.vectors, bases={"site04": OTHER_BASIS}, basis=None)
    federation.play(until=Stage.SHARE)
    for name in federation.context.members:
        session = federation.client(name)
        with refused(Code.MODEL_MISMATCH):
            session.share(federation.server.request(name))
        assert session.stage is Stage.FAILED
        assert not session._state.seeds


def test_member_that_starts_from_another_basis_is_a_dropout_for_a_server_that_knows_its_own():
    federation = make_federation(5)
    federation.bases = {"site04": OTHER_BASIS}
    federation.play()
    assert federation.server.faults == {"site04": Code.MODEL_MISMATCH}
    opened = federation.server.sums()["fusion"]
    assert opened.contributors == ("site01", "site02", "site03", "site05")
    np.testing.assert_array_equal(opened.values, federation.plain_sum("fusion", opened.contributors))


def test_basis_cannot_be_changed_on_the_way():
    """It stands under the member's signature, so a server cannot make two models look like one."""
    federation = make_federation(5)
    federation = Federation(federation.context, federation.vectors, bases={"site04": OTHER_BASIS}, basis=None)
    federation.play(until=Stage.SHARE)
    listed = [Advertise.from_bytes(raw) for _, raw in sorted(federation.server._advertisements.items())]
    levelled = tuple(dataclasses.replace(item, basis=BASIS).to_bytes() for item in listed)
    with refused(Code.BAD_SIGNATURE):
        federation.client(ME).share(Advertisements(levelled).to_bytes())


# One list of survivors


@pytest.mark.parametrize("stage", [Stage.UNMASK, Stage.DONE])
def test_second_and_different_list_of_survivors_is_equivocation_and_ends_the_session(stage):
    federation = at(Stage.UNMASK)
    listed = Survivors(federation.server._sid, federation.server._u3)
    request = federation.server.request(ME)
    session = federation.client(ME)
    if stage is Stage.DONE:
        session.unmask(request)
    with refused(Code.EQUIVOCATION):
        session.confirm(dataclasses.replace(listed, survivors=listed.survivors[:4]).to_bytes())
    assert session.stage is Stage.FAILED
    assert not session._state.held
    with refused(Code.WRONG_STAGE):
        session.unmask(request)


def test_late_duplicate_of_the_survivors_leaves_the_session_as_it_was():
    federation = at(Stage.CONFIRM)
    listed = survivors_of(federation)
    federation.collect()
    federation.server.advance()
    session = federation.client(ME)
    before = session.to_bytes()
    other_session = dataclasses.replace(listed, sid=bytes(32), survivors=listed.survivors[:4])
    for late in (listed.to_bytes(), other_session.to_bytes(), b"", listed.to_bytes()[:-1]):
        with refused(Code.WRONG_STAGE):
            session.confirm(late)
        assert session.to_bytes() == before
    session.unmask(federation.server.request(ME))


def test_list_of_survivors_before_its_time_is_only_out_of_order():
    federation = at(Stage.MASK)
    session = federation.client(ME)
    with refused(Code.WRONG_STAGE):
        session.confirm(Survivors(bytes(32), federation.context.members).to_bytes())
    assert session.stage is Stage.MASK


# One advertisement of a member


def second_advertisement(federation: Federation, name: str, **changes: object) -> bytes:
    """Another advertisement of a member for the same kid, validly signed."""
    draft = dataclasses.replace(Advertise.from_bytes(federation.server._advertisements[name]), **changes)
    return dataclasses.replace(draft, signature=federation.signers[name](draft.statement())).to_bytes()


def replaced(federation: Federation, name: str, raw: bytes) -> bytes:
    listed = dict(sorted(federation.server._advertisements.items()))
    return Advertisements(tuple({**listed, name: raw}.values())).to_bytes()


@pytest.mark.parametrize("stage", [Stage.MASK, Stage.CONFIRM, Stage.UNMASK, Stage.DONE])
@pytest.mark.parametrize("name", ["site01", "site04"])
def test_second_signed_advertisement_of_a_member_is_equivocation_and_ends_the_session(stage, name):
    federation = at(stage)
    message = replaced(federation, name, second_advertisement(federation, name, cipher_key=b"\x09" * 32))
    session = federation.client(ME)
    with refused(Code.EQUIVOCATION):
        session.share(message)
    assert session.stage is Stage.FAILED
    assert not any((session._state.cipher_private, session._state.seeds, session._state.held))
    assert session.advertisements[name] == federation.server._advertisements[name]


def test_late_advertisements_that_prove_nothing_leave_the_session_as_it_was():
    """Neither a duplicate, nor one without a valid signature, nor one of another session convicts anybody."""
    federation = at(Stage.MASK)
    listed = tuple(raw for _, raw in sorted(federation.server._advertisements.items()))
    unsigned = dataclasses.replace(Advertise.from_bytes(listed[3]), cipher_key=b"\x09" * 32).to_bytes()
    other = make_context(5, attempt=1)
    replay = ClientSession(other, "site04", federation.signers["site04"]).advertise(BASIS)
    session = federation.client(ME)
    before = session.to_bytes()
    for late in (
        Advertisements(listed).to_bytes(),
        Advertisements(listed[:3]).to_bytes(),
        Advertisements(listed[::-1]).to_bytes(),
        replaced(federation, "site04", unsigned),
        replaced(federation, "site04", replay),
        replaced(federation, "site04", b"advertisement"),
        b"",
    ):
        with refused(Code.WRONG_STAGE):
            session.share(late)
        assert session.to_bytes() == before
    assert session.mask(federation.server.request(ME), federation.sources(ME), bytes(32)).message


def test_member_with_two_advertisements_splits_the_cohort_and_no_share_crosses():
    """Told apart by H(U1) even where nobody sees both: what was sealed under one does not open under the other."""
    federation = at(Stage.SHARE)
    message = replaced(federation, "site05", second_advertisement(federation, "site05", cipher_key=b"\x09" * 32))
    federation.answer("site02", Stage.SHARE, message)
    federation.answer(ME, Stage.SHARE, federation.server.request(ME))
    assert federation.client("site02")._state.u1_hash != federation.client(ME)._state.u1_hash


def test_codes_that_halt_a_client_are_those_that_prove_a_lie_and_no_others():
    assert {Code.BAD_SIGNATURE, Code.OWN_KEY_CHANGED, Code.MODEL_MISMATCH, Code.EQUIVOCATION} == HALTING
    federation = at(Stage.SHARE)
    with pytest.raises(SecAggError) as caught:
        federation.answer(ME, Stage.SHARE, replaced(federation, "site02", b""))
    assert caught.value.code not in HALTING


# Sessions side by side


def exchange(*federations: Federation) -> None:
    """Every member is visited once, with the requests of all sessions that are under way."""
    stages = [federation.server.stage for federation in federations]
    for federation in federations:
        bind(federation)
    for name in federations[0].context.members:
        for federation, stage in zip(federations, stages, strict=True):
            assert federation.deliver(name, federation.reply(name, stage, federation.server.request(name)))
    for federation in federations:
        federation.server.advance()


def test_rounds_take_three_exchanges_when_the_next_sessions_keys_and_shares_ride_along():
    """The next keys ride on the masked reply, the next shares on the confirmation; the first round takes five."""
    rounds = [make_federation(4, round_=number, attempt=number, seed=number) for number in range(1, 5)]
    exchange(rounds[0])
    exchange(rounds[0])
    count = 2
    for now, following in zip(rounds, [*rounds[1:], None], strict=True):
        along = [] if following is None else [following]
        exchange(now, *along)
        exchange(now, *along)
        exchange(now)
        count += 3
        opened = now.server.sums()["fusion"]
        np.testing.assert_array_equal(opened.values, now.plain_sum("fusion", now.context.members))
    assert count == 2 + 3 * len(rounds)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_requests_of_sessions_under_way_at_once_cannot_be_exchanged(stage):
    current, following = (at(stage, 4, round_=number, attempt=number) for number in (1, 2))
    with refused(Code.WRONG_SESSION):
        current.answer(ME, stage, following.server.request(ME))
    following.answer(ME, stage, following.server.request(ME))
