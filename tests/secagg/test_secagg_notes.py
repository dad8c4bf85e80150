"""Notices to all and sealed notes to one: who can read, change, swap, hide or count them, and that sums stay right."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_federation import Federation, at, bind, disturbances, make_context, make_federation, random_vectors, refused

from secure_fed.errors import SecAggError
from secure_fed.secagg import Code, Stage, keys
from secure_fed.secagg.encoding import encode
from secure_fed.secagg.messages import (
    Advertise,
    Advertisements,
    Dealt,
    Release,
    ReleasedShares,
    ShareBundle,
    ShareDelivery,
)
from secure_fed.secagg.notes import NOTE_BYTES, PADDED_BYTES, pad, unpad
from secure_fed.secagg.shares import note_hash

ME, PEER, THIRD = "site01", "site02", "site03"
NOTICES = {name: f"notice of {name}".encode() for name in (ME, PEER, THIRD)}
NOTES = {PEER: {ME: b"a note of site02 to site01"}, THIRD: {PEER: b"a note of site03 to site02"}}


def noted(until: Stage, count: int = 4) -> Federation:
    context = make_context(count)
    federation = Federation(context, random_vectors(context, 7), notices=NOTICES, notes=NOTES)
    federation.play(until=until)
    bind(federation)
    return federation


def test_notice_reaches_every_other_member_and_the_answer_to_it_only_the_one_it_is_for():
    federation = noted(Stage.SHARE)
    heard = {}
    for name in federation.context.members:
        session = federation.client(name)
        assert session.notices == {}, "nothing is known before the advertisements are checked"
        session.share(federation.server.request(name), lambda notices, name=name: heard.update({name: notices}) or {})
        assert session.notices == heard[name]
    said = {name: NOTICES.get(name, b"") for name in federation.context.members}
    for name, notices in heard.items():
        assert notices == {other: notice for other, notice in said.items() if other != name}
    federation = noted(Stage.MASK)
    for name in federation.context.members:
        expected = {
            dealer: NOTES.get(dealer, {}).get(name, b"") for dealer in federation.context.members if dealer != name
        }
        assert federation.client(name).notes(federation.server.request(name)) == expected


def test_reading_the_notes_changes_nothing_and_the_vector_is_masked_after_it():
    federation = noted(Stage.MASK)
    session, request = federation.client(ME), federation.server.request(ME)
    before = session.to_bytes()
    assert session.notes(request) == session.notes(request)
    assert session.to_bytes() == before
    session.mask(request, federation.sources(ME), bytes(32))


def test_notes_are_read_in_their_stage_only_and_otherwise_the_session_is_left_as_it_was():
    federation = noted(Stage.MASK)
    request = federation.server.request(ME)
    federation.collect()
    session = federation.client(ME)
    before = session.to_bytes()
    with refused(Code.WRONG_STAGE):
        session.notes(request)
    assert session.to_bytes() == before


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.data())
def test_sums_are_right_whatever_is_said_beside_them_and_whoever_drops_out(data):
    context = make_context(4, components={"fusion": (8, {0, 1, 2, 3}), "image": (3, {0, 1, 2})})
    words = st.binary(max_size=NOTE_BYTES)
    notices = data.draw(st.dictionaries(st.sampled_from(context.members), words))
    notes = data.draw(
        st.dictionaries(st.sampled_from(context.members), st.dictionaries(st.sampled_from(context.members), words))
    )
    drops = {data.draw(st.sampled_from([Stage.MASK, Stage.CONFIRM])): data.draw(st.sampled_from([set(), {"site04"}]))}
    federation = Federation(context, random_vectors(context, 7), notices=notices, notes=notes)
    federation.play(drops=drops)
    opened = federation.server.sums()
    assert opened["fusion"] is not None
    for component, total in opened.items():
        if total is not None:
            np.testing.assert_array_equal(total.values, federation.plain_sum(component, total.contributors))


# What the server sees


def test_whether_a_note_says_anything_shows_neither_in_a_length_nor_in_what_is_released():
    """A hash of the note alone would let a server try what it guesses; the padding holds 256 random bits."""
    silent, talking = make_federation(4), noted(Stage.DONE)
    silent.play()
    for (stage, name, mine), (_, _, theirs) in zip(silent.received, talking.received, strict=True):
        notice = NOTICES.get(name, b"") if stage is Stage.ADVERTISE else b""
        assert len(theirs.message) - len(notice) == len(mine.message)
    everything = b"".join(bytes(reply) for _, _, reply in talking.received)
    assert not any(note in everything for notes in NOTES.values() for note in notes.values())
    kid = talking.context.kid
    for stage, holder, reply in talking.received:
        if stage is Stage.UNMASK:
            for dealer, raw in Release.from_bytes(reply.message).released.items():
                note = NOTES.get(dealer, {}).get(holder, b"")
                guess = len(note).to_bytes(2, "big") + note
                guess += bytes(PADDED_BYTES - len(guess))
                assert ReleasedShares.from_bytes(raw).note_hash != note_hash(kid, dealer, holder, guess)


@given(st.binary(max_size=NOTE_BYTES))
def test_padding_gives_the_note_back_in_one_length_with_256_random_bits_at_least(note):
    padded = pad(note)
    assert len(padded) == PADDED_BYTES
    assert unpad(padded) == note
    assert padded[-32:] != pad(note)[-32:], "equal by chance once in 2^256"


@pytest.mark.parametrize(
    "padded",
    [b"", bytes(PADDED_BYTES - 1), bytes(PADDED_BYTES + 1), (NOTE_BYTES + 1).to_bytes(2, "big").ljust(PADDED_BYTES)],
)
def test_what_no_padding_gives_is_no_note(padded):
    with refused(Code.MALFORMED_MESSAGE):
        unpad(padded)


# Too long


def test_own_notice_or_note_beyond_the_bound_never_leaves():
    long = bytes(NOTE_BYTES + 1)
    with refused(Code.MALFORMED_MESSAGE):
        make_federation(4).client(ME).advertise(bytes(32), long)
    federation = at(Stage.SHARE, 4)
    with refused(Code.MALFORMED_MESSAGE):
        federation.client(ME).share(federation.server.request(ME), lambda notices: {PEER: long})


def test_notice_beyond_the_bound_makes_its_sender_a_dropout_and_is_refused_by_the_others_too():
    federation = at(Stage.SHARE, 4)
    raw = federation.server._advertisements
    draft = dataclasses.replace(Advertise.from_bytes(raw[PEER]), notice=bytes(NOTE_BYTES + 1))
    long = dataclasses.replace(draft, signature=federation.signers[PEER](draft.statement())).to_bytes()
    with refused(Code.MALFORMED_MESSAGE):
        federation.client(ME).share(Advertisements(tuple({**raw, PEER: long}[name] for name in sorted(raw))).to_bytes())
    fresh = make_federation(4)
    assert not fresh.server.receive(PEER, long)
    assert fresh.server.faults == {PEER: Code.MALFORMED_MESSAGE}


# Forged, swapped, stripped, replayed


def test_notice_that_was_changed_or_taken_out_on_the_way_does_not_verify():
    federation = noted(Stage.SHARE)
    raw = federation.server._advertisements
    for notice in (b"", b"another", NOTICES[ME]):
        forged = dataclasses.replace(Advertise.from_bytes(raw[PEER]), notice=notice).to_bytes()
        listed = Advertisements(tuple({**raw, PEER: forged}[name] for name in sorted(raw)))
        with refused(Code.BAD_SIGNATURE):
            federation.client(ME).share(listed.to_bytes())


def test_members_that_were_shown_two_notices_of_one_member_cannot_open_each_others_shares():
    """H(U1) is over the advertisements with their notices, and it is in every seal."""
    federation = noted(Stage.SHARE)
    raw = dict(federation.server._advertisements)
    draft = dataclasses.replace(Advertise.from_bytes(raw[PEER]), notice=b"another")
    other = dataclasses.replace(draft, signature=federation.signers[PEER](draft.statement())).to_bytes()
    bundles = {}
    for name in (ME, THIRD, "site04"):
        shown = {**raw, PEER: other} if name == ME else raw
        session = federation.client(name)
        bundles[name] = ShareBundle.from_bytes(
            session.share(Advertisements(tuple(shown[member] for member in sorted(shown))).to_bytes())
        )
        federation.stored[name] = session.to_bytes()
    sealed = {name: bundles[name].sealed[ME] for name in (THIRD, "site04")}
    with refused(Code.SHARE_UNREADABLE):
        federation.client(ME).notes(ShareDelivery(federation.context.kid, (ME, THIRD, "site04"), sealed).to_bytes())


def resealed(federation: Federation, dealer: str, holder: str, dealt: Dealt) -> bytes:
    """What a corrupt dealer seals for a holder in place of what its session sealed."""
    state = federation.client(dealer)._state
    theirs = Advertise.from_bytes(state.peers[holder]).cipher_key
    key = keys.derive(keys.agree(federation.dealing[dealer], theirs), "share", state.kid, [dealer, holder])
    return keys.seal(key, dealt.to_bytes(), encode("sealed-share", [state.kid, dealer, holder, state.u1_hash]))


def delivery_with(federation: Federation, dealer: str, sealed: bytes) -> bytes:
    due = ShareDelivery.from_bytes(federation.server.request(ME))
    return dataclasses.replace(due, sealed={**due.sealed, dealer: sealed}).to_bytes()


@pytest.fixture
def dealt() -> tuple[Federation, Dealt]:
    """Before stage 3, and what site02 dealt to site01; a corrupt site02 still knows its key for shares."""
    federation = noted(Stage.MASK)
    federation.dealing = {name: federation.client(name)._state.cipher_private for name in federation.context.members}
    mine, theirs = federation.client(ME)._state, federation.client(PEER)._state
    own = Advertise.from_bytes(mine.peers[PEER]).cipher_key
    key = keys.derive(keys.agree(mine.cipher_private, own), "share", mine.kid, [PEER, ME])
    sealed = federation.server._sealed[PEER][ME]
    content = keys.unseal(key, sealed, encode("sealed-share", [theirs.kid, PEER, ME, theirs.u1_hash]))
    return federation, Dealt.from_bytes(content)


def test_note_that_its_dealer_did_not_sign_with_the_shares_is_forged(dealt):
    federation, item = dealt
    assert item.note == NOTES[PEER][ME]
    same = delivery_with(federation, PEER, resealed(federation, PEER, ME, item))
    assert federation.client(ME).notes(same)[PEER] == item.note, "the attack's tools are right"
    changed = dataclasses.replace(item, padded_note=pad(b"another note"))
    for read in (
        lambda session, message: session.notes(message),
        lambda session, message: session.mask(message, federation.sources(ME), bytes(32)),
    ):
        session = federation.client(ME)
        with refused(Code.SHARE_FORGED):
            read(session, delivery_with(federation, PEER, resealed(federation, PEER, ME, changed)))
        assert session.stage is Stage.FAILED


def test_note_to_one_member_cannot_be_passed_to_another_one(dealt):
    """Neither by the server, for whom it does not open, nor by a corrupt dealer: the signature names the holder."""
    federation, _ = dealt
    swapped = federation.server._sealed[THIRD][PEER]
    with refused(Code.SHARE_UNREADABLE):
        federation.client(ME).notes(delivery_with(federation, THIRD, swapped))
    state = federation.client(PEER)._state
    own = Advertise.from_bytes(state.peers[THIRD]).cipher_key
    key = keys.derive(keys.agree(state.cipher_private, own), "share", state.kid, [THIRD, PEER])
    content = keys.unseal(key, swapped, encode("sealed-share", [state.kid, THIRD, PEER, state.u1_hash]))
    with refused(Code.SHARE_FORGED):
        federation.client(ME).notes(
            delivery_with(federation, THIRD, resealed(federation, THIRD, ME, Dealt.from_bytes(content)))
        )


def test_server_that_strips_a_sealed_share_or_replays_another_sessions_gets_no_answer():
    federation, other = noted(Stage.MASK), noted(Stage.MASK)
    due = ShareDelivery.from_bytes(federation.server.request(ME))
    stripped = dataclasses.replace(due, sealed={name: s for name, s in due.sealed.items() if name != PEER})
    session = federation.client(ME)
    with refused(Code.WRONG_SHARES):
        session.notes(stripped.to_bytes())
    assert session.stage is Stage.FAILED
    with refused(Code.WRONG_STAGE):
        session.mask(due.to_bytes(), federation.sources(ME), bytes(32))
    with refused(Code.SHARE_UNREADABLE):  # the same members, round and attempt, other keys
        federation.client(ME).notes(other.server.request(ME))
    later = at(Stage.MASK, 4, round_=2).server.request(ME)
    with refused(Code.WRONG_SESSION):
        federation.client(ME).notes(later)


def test_server_can_hide_a_note_only_with_its_dealer_whom_it_then_has_to_leave_out():
    federation = noted(Stage.MASK)
    due = ShareDelivery.from_bytes(federation.server.request(ME))
    without = {name: sealed for name, sealed in due.sealed.items() if name != PEER}
    left = dataclasses.replace(due, u2=tuple(name for name in due.u2 if name != PEER), sealed=without)
    assert federation.client(ME).notes(left.to_bytes()).keys() == {THIRD, "site04"}


@settings(max_examples=40, derandomize=True, deadline=None)
@given(disturbances())
def test_reading_notes_refuses_any_disturbed_delivery_with_a_fixed_code_and_nothing_else(disturb):
    federation = WAITING.fork()
    session = federation.client(ME)
    with pytest.raises(SecAggError) as caught:
        session.notes(disturb(federation.server.request(ME)))
    assert caught.value.code in set(Code)
    assert session.stage is Stage.FAILED


WAITING = noted(Stage.MASK)


# The dealer's signature still tells who spoiled a secret


def spoil(change):
    def tamper(data: bytes) -> bytes:
        release = Release.from_bytes(data)
        items = {dealer: ReleasedShares.from_bytes(raw) for dealer, raw in release.released.items()}
        return dataclasses.replace(
            release, released={dealer: change(item).to_bytes() for dealer, item in items.items()}
        ).to_bytes()

    return tamper


FORGED_SHARE = spoil(lambda item: dataclasses.replace(item, shares=dict.fromkeys(item.shares, bytes(33))))
FORGED_HASH = spoil(lambda item: dataclasses.replace(item, note_hash=bytes(32)))


def test_releaser_of_a_share_that_was_not_signed_with_its_note_is_named_and_the_others_are_not():
    federation = noted(Stage.UNMASK, count=6)
    spoilt = {ME: FORGED_SHARE, PEER: FORGED_HASH}
    federation.collect(tamper=lambda name, data: spoilt[name](data) if name in spoilt else data)
    federation.server.advance()
    assert federation.server.faults == {ME: Code.SHARE_FORGED, PEER: Code.SHARE_FORGED}
    opened = federation.server.sums()["fusion"]
    np.testing.assert_array_equal(opened.values, federation.plain_sum("fusion", opened.contributors))
