"""What corrupt members try against the sum and each other, and who is named for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from secagg_federation import (
    MODEL,
    Federation,
    Reply,
    at,
    make_context,
    make_federation,
    random_vectors,
    refused,
    survivors_of,
)

from secure_fed.secagg import Code, Stage
from secure_fed.secagg.masking import slice_digest
from secure_fed.secagg.messages import Confirm, Confirmations, Masked, Release, ReleasedShares, ShareBundle
from secure_fed.secagg.packing import pack, unpack
from secure_fed.secagg.session import MASK_KEY, seed_name, survivors_statement


def resigned(federation: Federation, name: str, reply: Reply, slices: dict[str, np.ndarray]) -> Reply:
    """Other slices beside the message, under the corrupt member's own valid signature."""
    digests = {component: slice_digest(data) for component, data in slices.items()}
    draft = dataclasses.replace(Masked.from_bytes(reply.message), digests=digests)
    signature = federation.signers[name](draft.statement())
    return Reply(dataclasses.replace(draft, signature=signature).to_bytes(), slices)


def counted_twice(federation: Federation, name: str) -> Reply:
    """A corrupt member's masked vector with a contributor count of two."""
    reply = federation.reply(name, Stage.MASK, federation.server.request(name))
    bits = federation.context.params.wire_bits
    words = unpack(reply.slices["fusion"], 9, bits)
    words[-1] += 1
    return resigned(federation, name, reply, {"fusion": pack(words, bits)})


@pytest.mark.parametrize("value_bits", [16, 20, 24])
def test_member_that_counts_itself_twice_is_noticed(value_bits):
    federation = at(Stage.MASK, value_bits=value_bits)
    assert federation.deliver("site01", counted_twice(federation, "site01"))
    federation.collect(absent={"site01"})
    federation.server.advance()
    federation.play(until=Stage.UNMASK)
    federation.collect()
    with refused(Code.CONTRIBUTOR_MISMATCH):
        federation.server.advance()
    assert federation.server.released


def deal_badly(federation: Federation, dealer: str, sign_it: bool) -> None:
    """The dealer's session hands out shares of secrets other than those it advertised."""
    session = federation.client(dealer)
    if sign_it:
        session._state.seeds = {name: bytes(32) for name in session._state.seeds}
    else:
        session._sign = lambda message: bytes(64)
    reply = session.share(federation.server.request(dealer))
    federation.stored[dealer] = session.to_bytes()
    federation.server.receive(dealer, reply)
    federation.collect(absent={dealer})
    federation.server.advance()


def test_dealer_of_a_wrong_secret_is_named():
    federation = at(Stage.SHARE)
    deal_badly(federation, "site03", sign_it=True)
    federation.play(until=Stage.UNMASK)
    federation.collect()
    with refused(Code.WRONG_SECRET):
        federation.server.advance()
    assert federation.server.faults == {"site03": Code.WRONG_SECRET}
    assert federation.server.released


def test_dropout_that_dealt_another_masking_key_is_named():
    federation = at(Stage.SHARE)
    session = federation.client("site03")
    session._state.mask_private = bytes(range(32))
    federation.server.receive("site03", session.share(federation.server.request("site03")))
    federation.collect(absent={"site03"})
    federation.server.advance()
    federation.play(until=Stage.UNMASK, drops={Stage.MASK: {"site03"}})
    federation.collect()
    with refused(Code.WRONG_SECRET):
        federation.server.advance()
    assert federation.server.faults == {"site03": Code.WRONG_SECRET}


def test_share_without_its_dealers_signature_is_refused_when_it_arrives():
    federation = at(Stage.SHARE)
    deal_badly(federation, "site03", sign_it=False)
    federation.server.bind_model(MODEL)
    with refused(Code.SHARE_FORGED):
        federation.answer("site01", Stage.MASK, federation.server.request("site01"))


@pytest.mark.parametrize("change", ["a secret too few", "a secret too many"])
def test_dealer_of_other_secrets_than_it_committed_to_is_refused_by_its_holders(change):
    federation = at(Stage.SHARE)
    session = federation.client("site03")
    seeds = session._state.seeds
    session._state.seeds = {} if change == "a secret too few" else {**seeds, "text": bytes(32)}
    federation.server.receive("site03", session.share(federation.server.request("site03")))
    federation.collect(absent={"site03"})
    federation.server.advance()
    federation.server.bind_model(MODEL)
    with refused(Code.WRONG_SHARES):
        federation.answer("site01", Stage.MASK, federation.server.request("site01"))


def forge_release(data: bytes) -> bytes:
    release = Release.from_bytes(data)
    forged = {}
    for dealer, raw in release.released.items():
        item = ReleasedShares.from_bytes(raw)
        forged[dealer] = dataclasses.replace(item, shares=dict.fromkeys(item.shares, bytes(33))).to_bytes()
    return dataclasses.replace(release, released=forged).to_bytes()


@pytest.mark.parametrize("dropped", [set(), {"site04"}], ids=["of seeds", "of a masking key too"])
def test_releaser_of_a_forged_share_is_named_and_the_sum_is_right_without_it(dropped):
    federation = make_federation(5)
    federation.play(until=Stage.UNMASK, drops={Stage.MASK: dropped})
    federation.collect(tamper=lambda name, data: forge_release(data) if name == "site01" else data)
    federation.server.advance()
    assert federation.server.faults == {"site01": Code.SHARE_FORGED}
    opened = federation.server.sums()["fusion"]
    assert set(opened.contributors) == set(federation.context.members) - dropped
    assert (opened.values == federation.plain_sum("fusion", opened.contributors)).all()


def test_too_many_forged_shares_burn_the_round():
    federation = at(Stage.UNMASK)
    liars = {"site01", "site02", "site03"}
    federation.collect(tamper=lambda name, data: forge_release(data) if name in liars else data)
    with refused(Code.BELOW_THRESHOLD):
        federation.server.advance()
    assert liars <= set(federation.server.faults)
    assert federation.server.released


def test_release_with_more_or_fewer_shares_than_planned_is_not_taken():
    federation = at(Stage.UNMASK)
    request = federation.server.request("site01")
    release = Release.from_bytes(federation.answer("site01", Stage.UNMASK, request))
    fewer = dict(release.released)
    fewer.popitem()
    assert not federation.server.receive("site01", dataclasses.replace(release, released=fewer).to_bytes())
    assert federation.server.faults["site01"] == Code.WRONG_SHARES


def test_release_of_a_share_that_should_stay_hidden_is_not_taken():
    federation = at(Stage.UNMASK)
    release = Release.from_bytes(federation.answer("site01", Stage.UNMASK, federation.server.request("site01")))
    item = ReleasedShares.from_bytes(release.released["site02"])
    more = dataclasses.replace(item, shares={**item.shares, MASK_KEY: bytes(33)}).to_bytes()
    forged = dataclasses.replace(release, released={**release.released, "site02": more})
    assert not federation.server.receive("site01", forged.to_bytes())
    assert federation.server.faults["site01"] == Code.WRONG_SHARES


def test_bundle_that_leaves_a_holder_out_is_not_taken():
    federation = at(Stage.SHARE)
    bundle = ShareBundle.from_bytes(federation.answer("site01", Stage.SHARE, federation.server.request("site01")))
    fewer = {name: sealed for name, sealed in bundle.sealed.items() if name != "site02"}
    assert not federation.server.receive("site01", dataclasses.replace(bundle, sealed=fewer).to_bytes())
    assert federation.server.faults["site01"] == Code.WRONG_SHARES


def test_confirmation_of_another_list_is_not_counted_or_passed_on():
    federation = at(Stage.CONFIRM)
    listed = survivors_of(federation)
    statement = survivors_statement(listed.sid, listed.survivors[:4])
    wrong = Confirm("site01", listed.sid, federation.signers["site01"](statement))
    assert not federation.server.receive("site01", wrong.to_bytes())
    assert federation.server.faults["site01"] == Code.BAD_SIGNATURE
    federation.collect(absent={"site01"})
    federation.server.advance()
    passed_on = Confirmations.from_bytes(federation.server.request("site02")).signatures
    assert set(passed_on) == {"site02", "site03", "site04", "site05"}


def test_message_in_the_name_of_another_is_not_taken():
    for stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK):
        federation = at(stage)
        reply = federation.reply("site02", stage, federation.server.request("site02"))
        assert not federation.deliver("site01", reply)
        assert federation.deliver("site02", reply)


def test_members_shares_of_a_survivor_never_include_its_masking_key():
    federation = make_federation(5)
    federation.play(until=Stage.UNMASK, drops={Stage.MASK: {"site05"}})
    for name in federation.server.participants:
        reply = Release.from_bytes(federation.answer(name, Stage.UNMASK, federation.server.request(name)))
        for dealer, raw in reply.released.items():
            names = set(ReleasedShares.from_bytes(raw).shares)
            assert names == ({MASK_KEY} if dealer == "site05" else {seed_name("fusion")})


def test_masked_vector_that_comes_late_stays_masked():
    """A server that keeps a vector back and declares its sender dead learns its masking key only."""
    federation = at(Stage.MASK)
    late = federation.reply("site05", Stage.MASK, federation.server.request("site05"))
    federation.collect(absent={"site05"})
    federation.server.advance()
    assert not federation.deliver("site05", late)
    federation.play()
    released = [item["site05"] for item in federation.server._shares.values()]
    assert released
    assert all(set(item.shares) == {MASK_KEY} for item in released)


def test_same_vector_in_two_sessions_gives_unrelated_masked_vectors():
    context = make_context(4)
    vectors = random_vectors(context, 1)
    runs = [Federation(make_context(4, round_=number), vectors) for number in (1, 2)]
    for federation in runs:
        federation.play(until=Stage.CONFIRM)
    first, second = ({n: bytes(d) for s, n, d in f.received if s is Stage.MASK} for f in runs)
    assert all(first[name] != second[name] for name in context.members)
