"""Whole rounds: the opened sum is the plaintext sum, or nothing is opened."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_federation import MODEL, STAGES, Federation, make_context, make_federation, random_vectors

from secure_fed.errors import SecAggError
from secure_fed.secagg import Code, ServerSession, Stage
from secure_fed.secagg.session import MASK_KEY, seed_name

OWNED = {
    "encoder.image": (11, {0, 1, 2, 3}),
    "encoder.text": (7, {2, 3, 4, 5}),
    "fusion": (5, {0, 1, 2, 3, 4, 5}),
}


@st.composite
def federations_with_dropouts(draw):
    count = draw(st.integers(3, 12))
    corrupt = draw(st.integers(0, count - 2))
    members = st.integers(0, count - 1)
    layout = {
        f"component{number}": (
            draw(st.integers(1, 9)),
            draw(st.sets(members, min_size=corrupt + 2, max_size=count)),
        )
        for number in range(draw(st.integers(1, 3)))
    }
    context = make_context(
        count, corrupt, layout, min_cohort=draw(st.integers(1, count)), value_bits=draw(st.integers(2, 28))
    )
    # The stage in which each member falls silent; most stay, so that rounds succeed too.
    stays = st.just(len(STAGES))
    silent = {name: draw(stays | stays | stays | st.integers(0, len(STAGES) - 1)) for name in context.members}
    vectors = random_vectors(context, draw(st.integers(0, 2**32)))
    return Federation(context, vectors, threads=draw(st.integers(1, 2))), silent


@settings(max_examples=120, deadline=None, derandomize=True)
@given(federations_with_dropouts())
def test_any_dropout_pattern_gives_the_plaintext_sum_or_a_clean_abort(case):
    federation, silent = case
    context, server = federation.context, federation.server
    for position, stage in enumerate(STAGES):
        present = {name for name, since in silent.items() if since > position}
        if stage is Stage.MASK:
            server.bind_model(MODEL)
        federation.collect(absent=set(context.members) - present)
        needed = context.params.threshold if stage in (Stage.CONFIRM, Stage.UNMASK) else context.params.quorum
        if len(present) < needed:
            with pytest.raises(SecAggError, match=Code.BELOW_THRESHOLD):
                server.advance()
            assert server.stage is Stage.FAILED
            assert server.released == (stage is Stage.UNMASK and bool(present))
            return
        server.advance()
    survivors = {name for name, since in silent.items() if since > STAGES.index(Stage.MASK)}
    for spec in context.schema.components:
        contributors = tuple(sorted(spec.owners & survivors))
        opened = server.sums()[spec.name]
        if len(contributors) < context.params.floor(spec.name):
            assert opened is None
        else:
            assert opened.contributors == contributors
            assert opened.values.dtype == np.int32
            np.testing.assert_array_equal(opened.values, federation.plain_sum(spec.name, contributors))


def test_sum_of_components_with_different_owners_is_that_of_their_owners():
    federation = make_federation(6, 1, OWNED)
    federation.play()
    for name, (_, owners) in OWNED.items():
        contributors = tuple(f"site{owner + 1:02d}" for owner in sorted(owners))
        assert federation.server.sums()[name].contributors == contributors
        np.testing.assert_array_equal(federation.server.sums()[name].values, federation.plain_sum(name, contributors))


def test_sum_spans_several_keystream_blocks_exactly():
    federation = make_federation(4, 0, {"fusion": (150_001, {0, 1, 2, 3})})
    federation.play(drops={Stage.MASK: {"site02"}})
    opened = federation.server.sums()["fusion"]
    assert opened.contributors == ("site01", "site03", "site04")
    np.testing.assert_array_equal(opened.values, federation.plain_sum("fusion", opened.contributors))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("value_bits", "wire_bits"), [(2, 21), (18, 21), (19, 24), (21, 24), (22, 32), (29, 32)])
def test_extreme_contributions_do_not_wrap_around(value_bits, wire_bits, sign):
    """Five of b = 18, 21 and 29 are the most that 21, 24 and 32 bits hold."""
    federation = make_federation(5, value_bits=value_bits)
    assert federation.context.params.wire_bits == wire_bits
    level = 2 ** (value_bits - 1) - 1
    for vector in federation.vectors.values():
        vector["fusion"][:] = np.int32(sign * level).view(np.uint32)
    federation.play()
    assert (federation.server.sums()["fusion"].values == sign * 5 * level).all()


def test_member_that_owns_nothing_still_holds_shares():
    federation = make_federation(5, 0, {"fusion": (4, {0, 1, 2})})
    federation.play(drops={Stage.MASK: {"site03"}})
    assert federation.server.sums()["fusion"].contributors == ("site01", "site02")


def test_component_below_its_floor_stays_masked_while_others_open():
    """The other owners drop after sharing: one contributor is left, and its slice must never open."""
    federation = make_federation(6, 0, {"rare": (6, {0, 1}), "fusion": (5, {0, 1, 2, 3, 4, 5})})
    federation.play(drops={Stage.MASK: {"site02"}})
    assert federation.server.sums()["rare"] is None
    assert federation.server.sums()["fusion"] is not None


def test_no_share_of_a_self_mask_below_the_floor_leaves_a_client():
    federation = make_federation(6, 0, {"rare": (6, {0, 1}), "fusion": (5, {0, 1, 2, 3, 4, 5})})
    federation.play(until=Stage.UNMASK, drops={Stage.MASK: {"site02"}})
    plan = federation.context.release_plan(
        federation.context.members, [m for m in federation.context.members if m != "site02"]
    )
    assert plan["site01"] == (seed_name("fusion"),)
    federation.collect()
    for shares in federation.server._shares.values():
        assert all(seed_name("rare") not in item.shares for item in shares.values())


def test_floor_is_two_more_than_the_corrupt_members():
    """With C = 1 and three owners, one drop-out leaves two, one of whom may be corrupt: nothing opens."""
    federation = make_federation(7, 1, {"rare": (6, {0, 1, 2}), "fusion": (5, set(range(7)))})
    federation.play(drops={Stage.MASK: {"site03"}})
    assert federation.server.sums()["rare"] is None


def test_owners_may_opt_for_a_lower_floor_that_is_named_in_the_cautions():
    layout = {"rare": (6, {0, 1}), "fusion": (5, set(range(6)))}
    federation = make_federation(6, 1, layout, floors={"rare": 2}, dp_only=frozenset({"rare"}))
    federation.play()
    assert federation.server.sums()["rare"].contributors == ("site01", "site02")
    assert any("rare: DP only" in note for note in federation.context.params.cautions())


def test_masking_key_is_not_released_for_a_dropout_that_no_open_component_needs():
    context = make_context(6, 0, {"rare": (6, {0, 1}), "fusion": (5, {1, 2, 3, 4, 5})})
    survivors = [name for name in context.members if name != "site01"]
    assert "site01" not in context.release_plan(context.members, survivors)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(federations_with_dropouts(), st.data())
def test_release_plan_never_holds_both_kinds_of_secret_for_one_member(case, data):
    context = case[0].context
    u2 = data.draw(st.sets(st.sampled_from(context.members), min_size=1))
    u3 = data.draw(st.sets(st.sampled_from(sorted(u2))))
    for dealer, names in context.release_plan(u2, u3).items():
        assert (MASK_KEY in names) == (dealer not in u3)
        assert MASK_KEY not in names or names == (MASK_KEY,)


def test_state_between_any_two_messages_survives_as_bytes():
    """The federation restores every client from bytes for each message; the bytes are stable as well."""
    federation = make_federation(4)
    for stage in STAGES:
        if stage is Stage.MASK:
            federation.server.bind_model(MODEL)
        federation.collect()
        federation.server.advance()
        for name in federation.context.members:
            assert federation.client(name).to_bytes() == federation.stored[name]
            assert federation.client(name).stage is (
                Stage.DONE if stage is Stage.UNMASK else STAGES[STAGES.index(stage) + 1]
            )
    assert federation.server.sums()["fusion"] is not None


def test_stored_state_of_another_attempt_or_client_is_refused():
    federation = make_federation(4)
    federation.collect()
    other = make_federation(4, attempt=1)
    other.stored["site01"] = federation.stored["site01"]
    with pytest.raises(SecAggError, match=Code.WRONG_SESSION):
        other.client("site01")
    federation.stored["site02"] = federation.stored["site01"]
    with pytest.raises(SecAggError, match=Code.WRONG_SESSION):
        federation.client("site02")


def test_secrets_are_gone_from_the_state_once_they_are_used():
    federation = make_federation(4)
    federation.play(until=Stage.SHARE)
    secrets = {n: federation.client(n)._state for n in federation.context.members}
    federation.play(until=Stage.CONFIRM)
    for name, state in secrets.items():
        stored = federation.stored[name]
        for secret in (state.cipher_private, state.mask_private, *state.seeds.values()):
            assert secret not in stored
    held = {name: federation.client(name)._state.held for name in federation.context.members}
    federation.play()
    for name, shares in held.items():
        assert all(share not in federation.stored[name] for share in shares.values())


def test_retry_after_an_abort_uses_fresh_keys_and_gives_the_sum_of_the_same_vectors():
    first = make_federation(4)
    first.play(until=Stage.CONFIRM)
    first.collect(absent={"site01", "site02"})
    with pytest.raises(SecAggError, match=Code.BELOW_THRESHOLD):
        first.server.advance()
    assert not first.server.released
    second = Federation(make_context(4, attempt=1), first.vectors)
    second.play()
    contributors = second.server.sums()["fusion"].contributors
    np.testing.assert_array_equal(second.server.sums()["fusion"].values, first.plain_sum("fusion", contributors))
    masked = [[bytes(reply) for stage, _, reply in f.received if stage is Stage.MASK] for f in (first, second)]
    assert not set(masked[0]) & set(masked[1])


def test_server_says_nothing_out_of_order():
    server = ServerSession(make_context(4))
    for early in (server.sums, server.transcript):
        with pytest.raises(SecAggError, match=Code.WRONG_STAGE):
            early()
    assert server.request("site01") == b""
    with pytest.raises(SecAggError, match=Code.BELOW_THRESHOLD):
        server.advance()
    for late in (server.advance, lambda: server.request("site01"), lambda: server.receive("site01", b"")):
        with pytest.raises(SecAggError, match=Code.WRONG_STAGE):
            late()


def test_server_needs_the_model_before_it_asks_for_vectors():
    federation = make_federation(4)
    federation.play(until=Stage.MASK)
    with pytest.raises(SecAggError, match=Code.MODEL_NOT_BOUND):
        federation.server.request("site01")
