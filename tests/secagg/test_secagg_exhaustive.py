"""Every pattern of drop-outs by stage in cohorts of up to five, without a sample: the plaintext sum, or nothing.

Patterns share their beginnings: each stage is played once, and the session forks over who is silent in it.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from secagg_federation import STAGES, Federation, Reply, bind, make_federation, refused

from secure_fed.secagg import Code, Stage

LAYOUT = {"fusion": (2, set(range(5))), "rare": (1, {0, 1})}


def patterns(federation: Federation) -> int:
    """Play on from here for every choice of who answers in each stage; how many patterns that makes."""
    bind(federation)
    server = federation.server
    stage, participants = server.stage, server.participants
    replies = {name: federation.reply(name, stage, server.request(name)) for name in participants}
    count = 0
    for size in range(len(participants) + 1):
        for answering in itertools.combinations(participants, size):
            count += answered(federation.fork(), {name: replies[name] for name in answering})
    return count


def answered(federation: Federation, replies: dict[str, Reply]) -> int:
    server, params = federation.server, federation.context.params
    stage = server.stage
    for name, reply in replies.items():
        assert federation.deliver(name, reply)
    needed = params.threshold if stage in (Stage.CONFIRM, Stage.UNMASK) else params.quorum
    if len(replies) < needed:
        with refused(Code.BELOW_THRESHOLD):
            server.advance()
        assert server.stage is Stage.FAILED
        assert server.released == (stage is Stage.UNMASK)
        assert not server._sums
        return patterns_from(stage, len(replies))
    server.advance()
    if stage is not Stage.UNMASK:
        return patterns(federation)
    survivors = set(server.transcript().survivors)
    for spec in federation.context.schema.components:
        contributors = tuple(sorted(spec.owners & survivors))
        opened = server.sums()[spec.name]
        if len(contributors) < params.floor(spec.name):
            assert opened is None
        else:
            assert opened.contributors == contributors
            np.testing.assert_array_equal(opened.values, federation.plain_sum(spec.name, contributors))
    return 1


def patterns_from(stage: Stage, left: int) -> int:
    """How many patterns begin with an abort in this stage: those left fall silent later, or never."""
    return (len(STAGES) - STAGES.index(stage)) ** left


@pytest.mark.parametrize(
    ("members", "corrupt", "min_cohort"), [(3, 0, 1), (3, 1, 1), (4, 0, 1), (4, 1, 1), (5, 0, 1), (5, 0, 4), (5, 1, 1)]
)
def test_every_dropout_pattern_gives_the_plaintext_sum_or_a_clean_abort(members, corrupt, min_cohort):
    """A member is silent from one of the five stages on, or from none: 6^n patterns, all of them."""
    layout = {
        name: (size, {owner for owner in owners if owner < members})
        for name, (size, owners) in LAYOUT.items()
        if corrupt == 0 or name == "fusion"
    }
    federation = make_federation(members, corrupt, layout, min_cohort=min_cohort)
    assert patterns(federation) == (len(STAGES) + 1) ** members
