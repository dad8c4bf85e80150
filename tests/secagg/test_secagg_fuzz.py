"""A malicious server and malicious members, at random but from fixed seeds, against the real state machines.

A failure names its seed. A longer run: SECURE_FED_FUZZ_RUNS=20000 python -m pytest -m slow tests/secagg/test_secagg_fuzz.py
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
from hostile_server import Broken, World
from secagg_federation import STAGES, Federation, Reply, bind, make_context, random_vectors

from secure_fed.errors import SecAggError
from secure_fed.secagg import ClientSession, Code, SessionContext, Stage, keys, masking
from secure_fed.secagg.messages import (
    Advertise,
    Confirm,
    Dealt,
    Masked,
    Message,
    Release,
    ReleasedShares,
    ShareBundle,
    Survivors,
)
from secure_fed.secagg.session import survivors_statement

RUNS = 350
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


def test_a_malicious_server_with_corrupt_members_opens_nothing_but_sums_above_their_floors():
    worlds = attack(range(RUNS))
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
    assert len(honest) > RUNS / 5
    assert opened > RUNS / 10
    assert len(attacked) - opened > RUNS / 10
    aborts = sum((world.aborts for world in attacked), Counter())
    ends = Counter(stage for (stage, code), times in aborts.items() for _ in range(times) if code != Code.WRONG_STAGE)
    assert all(ends[stage] > 20 for stage in STAGES[1:]), ends
    assert len({code for _, code in aborts}) >= 14


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
    with pytest.raises(Broken, match="one derived key served|opens to something else"):
        attack(range(RUNS))
