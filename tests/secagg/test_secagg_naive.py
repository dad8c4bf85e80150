"""Attacks that work: each reads the victim's vector out of a naive variant, and gets nothing from ours.

A naive variant is our own code without one rule. The server keeps what it was sent and computes with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Collection

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from naive_variants import (
    VICTIM,
    AnyModel,
    CountsEntries,
    FloorBeforeTheDropOut,
    FloorOfTheCohort,
    Loot,
    Obedient,
    ObedientFederation,
    Timeless,
    TimelessFederation,
    plain,
    released,
    small,
    with_rules,
    without,
)
from secagg_federation import BASIS, Federation, bind, make_context, random_vectors, refused

from secure_fed.errors import ConfigError, SecAggError
from secure_fed.secagg import ClientSession, Code, SessionContext, Stage, keys
from secure_fed.secagg.messages import (
    Advertisements,
    Confirm,
    Confirmations,
    Dealt,
    ShareDelivery,
    Survivors,
)
from secure_fed.secagg.session import MASK_KEY, seed_name, survivors_statement

OTHER_MODEL = hashlib.sha256(b"a model under which nothing is learnt").digest()


# Both secrets of one member


def test_victim_listed_alive_and_dead_to_a_client_that_answers_twice_is_read_and_ours_answers_once():
    federation = small(make_context(5))
    federation.play(until=Stage.CONFIRM)
    everyone = federation.context.members
    twin = federation.fork()  # naive: a stored state serves again
    alive = released(federation, everyone, lambda _: everyone)
    dead = released(twin, without(everyone, VICTIM), lambda _: without(everyone, VICTIM))
    assert (Loot(federation, alive + dead).vector() == plain(federation)).all()

    ours = small(make_context(5))
    ours.play(until=Stage.CONFIRM)
    first = released(ours, everyone, lambda _: everyone)
    for name in without(everyone, VICTIM):
        with refused(Code.EQUIVOCATION):
            released(ours, [name], lambda _: without(everyone, VICTIM))
    loot = Loot(ours, first)
    assert (VICTIM, MASK_KEY) not in loot.shares
    with refused(Code.BELOW_THRESHOLD):
        loot.vector()


def split(threshold: int) -> tuple[Federation, list[bytes]]:
    """Six members, one of them corrupt; half of the honest are told that the victim lives, the others that not."""
    context = make_context(6, 1)
    object.__setattr__(context.params, "threshold", threshold)  # past the check that refuses less than 4
    federation = small(context)
    federation.play(until=Stage.CONFIRM)
    everyone, corrupt = context.members, "site06"
    sid, lists = federation.server._sid, (everyone, without(everyone, VICTIM))
    releases = []
    for listed, told in zip(lists, (("site01", "site02"), ("site03", "site04", "site05")), strict=True):
        signatures = {corrupt: federation.signers[corrupt](survivors_statement(sid, listed))}
        for name in told:
            reply = federation.answer(name, Stage.CONFIRM, Survivors(sid, listed).to_bytes())
            signatures[name] = Confirm.from_bytes(reply).signature
        request = Confirmations(sid, signatures).to_bytes()
        # The corrupt member answers for either list, from two copies of its state.
        for name in told:
            with contextlib.suppress(SecAggError):
                releases.append(federation.answer(name, Stage.UNMASK, request))
        copy = federation.fork()
        with contextlib.suppress(SecAggError):
            copy.answer(corrupt, Stage.CONFIRM, Survivors(sid, listed).to_bytes())
            releases.append(copy.answer(corrupt, Stage.UNMASK, request))
    return federation, releases


def test_split_survivor_lists_read_the_victim_where_two_lists_can_be_signed_and_not_with_our_threshold():
    naive, releases = split(threshold=3)
    assert (Loot(naive, releases).vector() == plain(naive)).all()
    with pytest.raises(ConfigError, match="allows two survivor lists"):
        dataclasses.replace(make_context(6, 1).params, threshold=3)

    ours, releases = split(make_context(6, 1).params.threshold)
    loot = Loot(ours, releases)
    assert not {(VICTIM, MASK_KEY), (VICTIM, seed_name("fusion"))} <= loot.shares.keys()
    with refused(Code.BELOW_THRESHOLD):
        loot.vector()


def taken_by_one_member(federation: Federation, member: str) -> Loot:
    """What the server reads off with the shares that one corrupt member holds."""
    federation.play(until=Stage.CONFIRM)
    loot = Loot(federation)
    for dealer, raw in federation.client(member)._state.held.items():
        loot.take(member, dealer, Dealt.from_bytes(raw).shares)
    return loot


def test_threshold_of_one_gives_everybody_to_a_single_corrupt_member_and_ours_refuses_it():
    context = make_context(5, 1)
    object.__setattr__(context.params, "threshold", 1)
    naive = small(context)
    loot = taken_by_one_member(naive, "site05")
    for name in context.members[:4]:
        assert (loot.vector(name) == naive.vectors[name]["fusion"].view(np.int32)).all()

    with pytest.raises(ConfigError, match="threshold=1 allows two survivor lists"):
        dataclasses.replace(make_context(5, 1).params, threshold=1)
    with refused(Code.BELOW_THRESHOLD):
        taken_by_one_member(small(make_context(5, 1)), "site05").vector()


# Too few behind a sum


def test_duplicated_active_list_reads_the_victim_of_a_client_that_counts_entries_and_ours_counts_members():
    """Each is told that nobody survived but itself, twice, and the victim: everybody else's masks come off."""
    naive = small(with_rules(make_context(5), CountsEntries))
    naive.play(until=Stage.CONFIRM)
    others = without(naive.context.members, VICTIM)
    releases = released(naive, others, lambda name: (name, name, VICTIM))
    assert (Loot(naive, releases).vector() == plain(naive)).all()

    ours = small(make_context(5))
    ours.play(until=Stage.CONFIRM)
    for name in others:
        with refused(Code.DUPLICATE_MEMBER):
            released(ours, [name], lambda name: (name, name, VICTIM))
        with refused(Code.WRONG_STAGE):
            ours.fork().answer(name, Stage.UNMASK, Confirmations(bytes(32), {}).to_bytes())


def test_single_survivor_is_read_out_of_a_client_that_takes_any_list_and_ours_wants_a_cohort():
    naive = small(with_rules(make_context(5), Obedient), ObedientFederation)
    naive.play(until=Stage.CONFIRM)
    releases = released(naive, naive.context.members, lambda _: (VICTIM,))
    assert (Loot(naive, releases).vector() == plain(naive)).all()

    ours = small(make_context(5))
    ours.play(until=Stage.CONFIRM)
    for name in ours.context.members:
        with refused(Code.COHORT_TOO_SMALL):
            released(ours, [name], lambda _: (VICTIM,))


def test_component_with_one_owner_is_read_where_only_the_cohort_has_a_floor_and_ours_refuses_the_layout():
    layout = {"image": (6, {0}), "fusion": (4, set(range(5)))}
    one = lambda: make_context(5, 0, layout, floors={"image": 1}, dp_only=frozenset({"image"}))  # noqa: E731
    context = with_rules(one(), FloorOfTheCohort)
    object.__setattr__(context, "params", make_context(5).params)  # nobody opted for anything
    naive = small(context)
    naive.play()
    assert (naive.server.sums()["image"].values == plain(naive, "image")).all()
    with pytest.raises(ConfigError, match="'image' has 1 owners and its floor is 2"):
        make_context(5, 0, layout)


def test_owner_that_drops_out_after_the_check_leaves_the_victim_alone_and_ours_keeps_that_slice_masked():
    layout = {"image": (6, {0, 1}), "fusion": (4, set(range(5)))}
    drops = {Stage.MASK: {"site02"}}
    naive = small(with_rules(make_context(5, 0, layout), FloorBeforeTheDropOut))
    naive.play(until=Stage.UNMASK, drops=drops)
    releases = [naive.answer(name, Stage.UNMASK, naive.server.request(name)) for name in naive.server.participants]
    assert (Loot(naive, releases).vector(component="image") == plain(naive, "image")).all()

    ours = small(make_context(5, 0, layout))
    ours.play(drops=drops)
    assert ours.server.sums()["image"] is None
    survivors = without(ours.context.members, "site02")
    assert (ours.server.sums()["fusion"].values == ours.plain_sum("fusion", survivors)).all()
    releases = [reply.message for at, _, reply in ours.received if at is Stage.UNMASK]
    loot = Loot(ours, releases)
    assert not any(name == seed_name("image") for _, name in loot.shares)
    with refused(Code.BELOW_THRESHOLD):
        loot.vector(component="image")


# Identities, models, sessions


def test_man_in_the_middle_reads_the_victim_where_the_server_says_who_is_who_and_ours_pins_identities():
    """All others are the server's own inventions; it subtracts what it put in."""
    forged = {name: Ed25519PrivateKey.generate() for name in make_context(5).members if name != VICTIM}
    real = make_context(5)
    named = {**real.public_keys, **{name: key.public_key().public_bytes_raw() for name, key in forged.items()}}
    naive = small(dataclasses.replace(real, public_keys=named))  # naive: takes the roster from the server
    naive.signers |= {name: key.sign for name, key in forged.items()}
    naive.play()
    total = naive.server.sums()["fusion"].values
    assert (total - naive.plain_sum("fusion", tuple(sorted(forged))) == plain(naive)).all()

    ours = small(real)
    honest = ours.answer(VICTIM, Stage.ADVERTISE, b"")
    fakes = [ClientSession(real, name, key.sign).advertise(BASIS) for name, key in forged.items()]
    with refused(Code.BAD_SIGNATURE):
        ours.answer(VICTIM, Stage.SHARE, Advertisements((honest, *fakes)).to_bytes())
    theirs = [naive.server._advertisements[name] for name in sorted(forged)]
    with refused(Code.WRONG_SESSION):
        ours.answer(VICTIM, Stage.SHARE, Advertisements((honest, *theirs)).to_bytes())


def test_other_models_for_others_leave_the_victim_alone_in_the_sum_and_ours_binds_the_model():
    """Pasquini et al. (CCS 2022): the others get a model whose updates the server knows; here they are zero."""

    def played(context: SessionContext, bases: Collection[str] = ()) -> Federation:
        federation = small(context)
        others = without(context.members, VICTIM)
        federation.models = dict.fromkeys(others, OTHER_MODEL)
        federation.bases = dict.fromkeys(bases, OTHER_MODEL)
        federation.basis = None
        federation.__post_init__()
        for name in others:
            federation.vectors[name]["fusion"][:] = 0
        federation.play()
        return federation

    naive = played(with_rules(make_context(5), AnyModel))
    assert (naive.server.sums()["fusion"].values == plain(naive)).all()

    with refused(Code.MODEL_MISMATCH):  # where they differ before the keys are made
        played(make_context(5), bases=without(make_context(5).members, VICTIM))
    with refused(Code.BELOW_THRESHOLD):  # where they differ only when the vectors are masked
        played(make_context(5))


def replay_shares(federation: Federation, sealed: dict[str, bytes]) -> list[bytes]:
    """Every holder is given what the victim sealed in another session; then the victim is said to have dropped out."""
    federation.play(until=Stage.MASK)
    bind(federation)
    others = without(federation.context.members, VICTIM)
    for name in others:
        honest = ShareDelivery.from_bytes(federation.server.request(name))
        forged = dataclasses.replace(honest, sealed={**honest.sealed, VICTIM: sealed[name]})
        assert federation.deliver(name, federation.reply(name, Stage.MASK, forged.to_bytes()))
    federation.server.advance()
    return released(federation, others, lambda _: others)


def sealed_by_the_victim(federation: Federation) -> dict[str, bytes]:
    """Play on until the vectors are in; holder -> what the server passed on to it from the victim."""
    federation.play(until=Stage.MASK)
    sealed = dict(federation.server._sealed[VICTIM])
    federation.play(until=Stage.CONFIRM)
    return sealed


@pytest.mark.parametrize("other", [{"round_": 2}, {"run": "another"}, {"attempt": 1}])
def test_replayed_shares_give_the_victims_other_secret_where_no_session_is_bound_and_ours_do_not_open(other):
    contexts = (make_context(5), make_context(5, **other))
    naive = [small(with_rules(context, Timeless), TimelessFederation) for context in contexts]
    sealed = sealed_by_the_victim(naive[0])
    alive = released(naive[0], naive[0].context.members, lambda _: naive[0].context.members)
    dead = replay_shares(naive[1], sealed)
    assert (Loot(naive[0], alive + dead).vector() == plain(naive[0])).all()

    ours = [small(context) for context in contexts]
    with refused(Code.SHARE_UNREADABLE):
        replay_shares(ours[1], sealed_by_the_victim(ours[0]))


def test_keys_that_survive_a_crash_give_the_victim_to_a_server_that_only_listens_and_ours_are_fresh(monkeypatch):
    """The victim survives one attempt and drops out of the next: its seed and its masking key are both released."""

    def two_attempts() -> tuple[Federation, Loot]:
        federations = [small(make_context(5, attempt=attempt)) for attempt in range(2)]
        federations[0].play()
        federations[1].play(drops={Stage.MASK: {VICTIM}})
        played = [reply.message for f in federations for stage, _, reply in f.received if stage is Stage.UNMASK]
        return federations[0], Loot(federations[0], played)

    with monkeypatch.context() as naive:
        drawn = itertools.cycle(hashlib.sha256(f"from the disk {number}".encode()).digest() for number in range(15))
        naive.setattr(keys, "fresh_secret", lambda: next(drawn))  # five members with three secrets each, always those
        federation, loot = two_attempts()
        assert (loot.vector() == plain(federation)).all()

    _, loot = two_attempts()
    assert keys.public_of(loot.secret(VICTIM, MASK_KEY)) != loot.advertised[VICTIM].mask_key
    with pytest.raises(AssertionError, match="not all masks are off"):
        loot.vector()


# Masks and randomness


def deviation(data: np.ndarray) -> float:
    """The largest deviation of bytes from uniform and independent ones, in standard deviations.

    Chi-squared over the byte values (made normal as Wilson and Hilferty do), and correlations at some distances.
    """
    counts, expected = np.bincount(data, minlength=256), len(data) / 256
    third = (((counts - expected) ** 2 / expected).sum() / 255) ** (1 / 3)
    deviations = [abs(third - (1 - 2 / (9 * 255))) / math.sqrt(2 / (9 * 255))]
    values = data.astype(np.float64)
    for distance in (1, 3, 4, 8, len(data) // 2):
        correlation = np.corrcoef(values[:-distance], values[distance:])[0, 1]
        deviations.append(abs(correlation) * math.sqrt(len(values) - distance))
    return max(deviations)


def mersenne(seed: int, size: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 2**32, size, dtype=np.uint32)


def test_masks_of_a_generator_with_a_small_seed_come_off_by_trying_and_ours_have_256_bits():
    """Flower's SecAgg+ leaves 28 bits of MT19937's seed; 12 here, so that all can be tried in no time."""
    levels = random_vectors(make_context(5), 5)[VICTIM]["fusion"]
    masked = levels + mersenne(2969, len(levels))
    found = [
        seed
        for seed in range(2**12)
        if (np.abs((masked - mersenne(seed, len(levels))).view(np.int32).astype(np.int64)) < 2**15).all()
    ]
    assert found == [2969], "a contribution is small, and only the right masks leave something small"
    assert (masked - mersenne(found[0], len(levels)) == levels).all()

    federation = small(make_context(5))
    federation.play()
    loot = Loot(federation, [reply.message for stage, _, reply in federation.received if stage is Stage.UNMASK])
    seeds = {loot.secret(name, seed_name("fusion")) for name in federation.context.members}
    assert len(seeds) == 5
    assert {len(seed) for seed in seeds} == {32}
    assert not any(seed.startswith(bytes(8)) for seed in seeds), "a seed of few bits in a long field"


def test_masks_that_repeat_are_told_from_random_and_read_and_ours_are_not():
    """One word for all coordinates (OpenFL), or one stream for two vectors (keys used twice)."""
    federation = small(make_context(5, 0, {"fusion": (40_000, set(range(5)))}))
    levels = federation.vectors[VICTIM]["fusion"]
    one_word = levels + np.uint32(0x9E3779B9)
    assert deviation(one_word.view(np.uint8)) > 100
    assert (one_word - (one_word[0] - levels[0]) == levels).all(), "who knows one coordinate knows all"
    stream, known = mersenne(1, 40_000), np.zeros(40_000, np.uint32)
    assert deviation(np.concatenate([levels + stream, known + stream]).view(np.uint8)) > 100
    assert ((levels + stream) - (known + stream) == levels).all()

    for vector in federation.vectors.values():
        vector["fusion"][:] = 0  # nothing but masks
    federation.play(until=Stage.CONFIRM)
    slices = [reply.slices["fusion"] for stage, _, reply in federation.received if stage is Stage.MASK]
    for data in (*slices, np.concatenate(slices)):
        assert deviation(data) < 6.5
