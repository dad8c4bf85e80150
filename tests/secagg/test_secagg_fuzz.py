"""A malicious server and malicious members, at random but from fixed seeds, against the real state machines.

A failure names its seed. A longer run, as long as one likes:
SECURE_FED_FUZZ_RUNS=20000 python -m pytest -m slow tests/secagg/test_secagg_fuzz.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from fuzz_judge import Broken
from hostile_server import World
from secagg_federation import STAGES, Federation, Reply, bind, make_context, random_vectors

from secure_fed.errors import SecAggError
from secure_fed.secagg import ClientSession, Code, SessionContext, Stage, keys, masking, shamir
from secure_fed.secagg.messages import (
    Advertise,
    Confirm,
    Masked,
    Release,
    ReleasedShares,
    ShareBundle,
    Survivors,
)
from secure_fed.secagg.session import survivors_statement

RUNS = 350
FEW = 120
SEEDS = pytest.mark.parametrize("runs", [FEW, pytest.param(RUNS, marks=pytest.mark.slow)])
LONG = range(10_000, 10_000 + int(os.environ.get("SECURE_FED_FUZZ_RUNS", "3000")))


@contextlib.contextmanager
def seeded(seed: int):
    """Whatever fails inside says how to have it again."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


# A malicious server with corrupt members, against honest clients


def attack(seeds: Iterable[int], **rules) -> list[World]:
    """Worlds played to their end and judged."""
    worlds = []
    for seed in seeds:
        with seeded(seed):
            world = World(seed, **rules)
            world.play()
            world.judge()
            worlds.append(world)
    return worlds


@SEEDS
def test_a_malicious_server_with_corrupt_members_opens_nothing_but_sums_above_their_floors(runs):
    worlds = attack(range(runs))
    honest = [world for world in worlds if not world.rate]
    for world in honest:  # all that it says is true, so all sums open
        assert not world.aborts
        owners = [
            spec.owners - world.corrupt for session in world.sessions for spec in session.context.schema.components
        ]
        assert sorted(map(sorted, world.opened)) == sorted(map(sorted, owners))
    # It is no idle server, and no wall either: some attacked runs still open, the others end at every stage.
    attacked = [world for world in worlds if world.rate]
    opened = sum(bool(world.opened) for world in attacked)
    assert len(honest) > runs / 5
    assert opened > runs / 10
    assert len(attacked) - opened > runs / 10
    aborts = sum((world.aborts for world in attacked), Counter())
    ends = Counter(stage for (stage, code), times in aborts.items() for _ in range(times) if code != Code.WRONG_STAGE)
    assert all(ends[stage] > runs / 17 for stage in STAGES[1:]), ends
    assert len({code for _, code in aborts}) > 10


@pytest.mark.slow
def test_a_malicious_server_opens_nothing_more_in_a_long_run():
    attack(LONG)


def low_threshold(*arguments, **options) -> SessionContext:
    context = make_context(*arguments, **options)
    object.__setattr__(context.params, "threshold", (context.params.members + context.params.max_corrupt) // 2)
    return context


def naive(**rules: Callable) -> Callable[..., SessionContext]:
    kind = type("Naive", (SessionContext,), rules)

    def make(*arguments, **options) -> SessionContext:
        context = make_context(*arguments, **options)
        return kind(**{item.name: getattr(context, item.name) for item in dataclasses.fields(context)})

    return make


class AnswersAgain(ClientSession):
    """A client that takes every message at any time, as one does that forgets its state."""

    @contextlib.contextmanager
    def _step(self, expected, following):
        kept = self._state.to_bytes()
        yield self._state
        if expected is not Stage.ADVERTISE:
            self._state = type(self._state).from_bytes(kept)
        self._state.stage = following

    def _refuse_other_survivors(self, message):
        pass


class Talks(ClientSession):
    def share(self, message):
        seed = next(iter(self._state.seeds.values()))
        raise SecAggError(Code.MALFORMED_MESSAGE, f"while sharing {seed.hex()}")


class Improvises(ClientSession):
    def share(self, message):
        raise SecAggError("it did not work", "")


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ({"make": low_threshold}, "both kinds of secrets"),
        ({"make": naive(is_open=lambda self, spec, survivors: True)}, "alone can be opened"),
        (
            {"make": naive(check_signature=lambda self, member, signature, statement: None)},
            "alone can be opened|both kinds",
        ),
        ({"client": AnswersAgain}, "twice"),
        ({"client": Talks}, "text holds a secret"),
        ({"client": Improvises}, "no fixed code"),
    ],
    ids=["low threshold", "no floors", "no signatures", "no single use", "talkative", "free text"],
)
def test_the_fuzzer_finds_a_rule_that_was_taken_away(rules, found):
    with pytest.raises(Broken, match=found):
        attack(range(RUNS), **rules)


def test_the_fuzzer_finds_a_key_that_serves_twice(monkeypatch):
    def without_component(seed, sid, owner, component):
        return masking.Mask(keys.derive(sid, "self-mask", sid, [owner]), True)

    monkeypatch.setattr(masking, "self_mask", without_component)
    with pytest.raises(Broken, match="one derived key served"):
        attack(range(RUNS))


# Malicious members, against an honest server


class Members:
    """One seeded round in which corrupt members answer what they like; `poisoned` says whether a slice was forged."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        count = rng.randint(3, 6)
        corrupt = rng.randint(0, min(2, count - 2))
        layout = {
            "image": (5, set(rng.sample(range(count), rng.randint(corrupt + 2, count)))),
            "fusion": (4, set(range(count))),
        }
        context = make_context(count, corrupt, layout)
        self.federation = Federation(context, random_vectors(context, seed))
        before = make_context(count, corrupt, layout, round_=0)
        self.earlier = Federation(before, random_vectors(before, seed))
        self.corrupt = set(rng.sample(context.members, corrupt))
        self.poisoned = False
        self.silent: Counter[str] = Counter()
        self.end = ""

    def play(self) -> None:
        federation, server = self.federation, self.federation.server
        self.earlier.play()
        while server.stage is not Stage.DONE:
            bind(federation)
            for name in self.rng.sample(server.participants, len(server.participants)):
                if self.rng.random() < 0.03:
                    continue
                try:
                    reply = self.reply(name, server.stage, server.request(name))
                except SecAggError as error:
                    self.silent[Code(error.code)] += 1
                    continue
                if name in self.corrupt and self.rng.random() < 0.4:
                    reply = self.spoiled(name, server.stage, reply)
                federation.deliver(name, reply)
            try:
                server.advance()
            except SecAggError as error:
                self.end = Code(error.code)
                return
        self.end = "opened"

    def reply(self, name: str, stage: Stage, request: bytes) -> Reply:
        """A corrupt dealer may deal shares that do not fit each other, and sign them."""
        if stage is not Stage.SHARE or name not in self.corrupt or self.rng.random() < 0.8:
            return self.federation.reply(name, stage, request)
        split = shamir.split

        def crooked(secret, threshold, points):
            dealt = split(secret, threshold, points)
            return {point: self.rng.randrange(shamir.PRIME) if point % 2 else share for point, share in dealt.items()}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shamir, "split", crooked)
            return self.federation.reply(name, stage, request)

    def spoiled(self, name: str, stage: Stage, reply: Reply) -> Reply:
        rng, slices = self.rng, reply.slices
        how = rng.randrange(5)
        if how == 0:
            old = [r for at, who, r in self.earlier.received if at is stage and (who == name or rng.random() < 0.5)]
            return rng.choice(old) if old else reply
        if how == 1:
            place = rng.randrange(len(reply.message))
            flipped = reply.message[:place] + bytes([reply.message[place] ^ rng.randint(1, 255)])
            return Reply(rng.choice([flipped + reply.message[place + 1 :], flipped, b""]), slices)
        if slices and how == 2:  # not what was signed
            return Reply(reply.message, {part: self.flipped(data) for part, data in slices.items()})
        if slices:  # signed, and off by whatever this member likes
            forged = {part: self.flipped(data) for part, data in slices.items()}
            masked = Masked.from_bytes(reply.message)
            draft = dataclasses.replace(masked, digests={p: masking.slice_digest(data) for p, data in forged.items()})
            self.poisoned = True
            return Reply(self.signed(name, draft), forged)
        return Reply(self.rewritten(name, stage, reply.message))

    def flipped(self, data: np.ndarray) -> np.ndarray:
        changed = data.copy()
        changed[self.rng.randrange(len(data))] ^= self.rng.randint(1, 255)
        return changed

    def signed(self, name: str, draft) -> bytes:
        return dataclasses.replace(draft, signature=self.federation.signers[name](draft.statement())).to_bytes()

    def rewritten(self, name: str, stage: Stage, raw: bytes) -> bytes:
        """Another content in good form, signed where signatures belong."""
        rng = self.rng
        if stage is Stage.ADVERTISE:
            item = Advertise.from_bytes(raw)
            other = rng.choice([{"basis": bytes(32)}, {"mask_key": bytes(32)}, {"commitments": {}}, {"kid": bytes(32)}])
            return self.signed(name, dataclasses.replace(item, **other))
        if stage is Stage.SHARE:
            item = ShareBundle.from_bytes(raw)
            values = list(item.sealed.values())
            shuffled = dict(zip(item.sealed, rng.sample(values, len(values)), strict=True))
            return dataclasses.replace(item, sealed=rng.choice([shuffled, dict.fromkeys(item.sealed, b"")])).to_bytes()
        if stage is Stage.CONFIRM:
            item = Confirm.from_bytes(raw)
            listed = Survivors.from_bytes(self.federation.server.request(name)).survivors
            signature = self.federation.signers[name](survivors_statement(item.sid, listed[:-1]))
            return dataclasses.replace(item, signature=signature).to_bytes()
        item = Release.from_bytes(raw)
        released = {dealer: ReleasedShares.from_bytes(opened) for dealer, opened in item.released.items()}
        dealer = rng.choice(sorted(released))
        shares = {what: rng.randrange(shamir.PRIME).to_bytes(33, "big") for what in released[dealer].shares}
        released[dealer] = dataclasses.replace(released[dealer], shares=shares)
        return dataclasses.replace(item, released={n: opened.to_bytes() for n, opened in released.items()}).to_bytes()

    def judge(self) -> None:
        server, context = self.federation.server, self.federation.context
        assert set(server.faults) <= self.corrupt, f"an honest member was blamed: {server.faults}"
        assert set(server.faults.values()) <= set(Code)
        if server.stage is not Stage.DONE:
            assert server.stage is Stage.FAILED
            return
        for spec in context.schema.components:
            opened = server.sums()[spec.name]
            if opened is None:
                continue
            assert len(opened.contributors) >= context.params.floor(spec.name)
            if not self.poisoned:
                assert (opened.values == self.federation.plain_sum(spec.name, opened.contributors)).all()


def members_at_odds(seeds: Iterable[int]) -> list[Members]:
    rounds = []
    for seed in seeds:
        with seeded(seed):
            members = Members(seed)
            members.play()
            members.judge()
            rounds.append(members)
    return rounds


@SEEDS
def test_malicious_members_stop_a_round_or_are_left_out_and_never_make_an_honest_one_look_guilty(runs):
    rounds = members_at_odds(range(runs))
    ends = Counter(members.end for members in rounds)
    assert ends["opened"] > runs / 3, ends
    assert len(ends) > 3, ends
    assert not any(members.silent for members in rounds if not members.corrupt)
    codes = Counter(code for members in rounds for code in members.federation.server.faults.values())
    assert codes[Code.SHARE_FORGED], "a forged share was found out"
    assert codes[Code.WRONG_SECRET], "a crooked dealer was found out"
    assert len(codes) >= 8, codes


@pytest.mark.slow
def test_malicious_members_do_no_more_in_a_long_run():
    members_at_odds(LONG)
