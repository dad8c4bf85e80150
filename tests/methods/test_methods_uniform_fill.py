"""Uniform-filling draws anew for each record and call, at the encoder's norm; scored models repeat their draws."""

from __future__ import annotations

import numpy as np
import torch
from fin_example import model_of, records_of, schema_of
from shipped_methods import built

from secure_fed.server.evaluation import predict

SCHEMA = schema_of(2)
EVERYTHING = frozenset(SCHEMA.names)
METHOD = built("uniform_fill")
MODEL = model_of(METHOD, SCHEMA, [EVERYTHING])
N = 50
BATCH = MODEL.prepare(records_of(SCHEMA, {"vitals": [True] * N, "labs": [False] * N}))


def drawn() -> torch.Tensor:
    return METHOD.impute(MODEL, BATCH, MODEL.encode(BATCH))["labs"].mean


def test_a_draw_has_the_encoders_norm_and_is_no_other_records_nor_calls() -> None:
    torch.manual_seed(0)
    first, second = drawn(), drawn()
    # The norm is scale * |x| / sqrt(|x|^2 + 0.1^2), and |x|^2 of six uniform numbers is rarely below 0.3.
    torch.testing.assert_close(first.norm(dim=1), torch.full((N,), MODEL.encoder("labs").scale), rtol=0.05, atol=0)
    assert (first > 0).all()
    assert len(torch.unique(first, dim=0)) == N
    assert not (first == second).any()


def test_a_draw_knows_nothing_of_the_record() -> None:
    torch.manual_seed(0)
    first = drawn()
    torch.manual_seed(0)
    other = METHOD.impute(MODEL, BATCH, {name: torch.zeros(N, 6) for name in SCHEMA.names})["labs"].mean
    assert torch.equal(first, other)


def test_the_still_loss_repeats_itself_and_the_loss_does_not() -> None:
    (phase,) = METHOD.phases(SCHEMA, (), 3, 6)
    assert phase.still_loss is not None
    assert torch.equal(phase.still_loss(MODEL, BATCH, None), phase.still_loss(MODEL, BATCH, None))
    assert not torch.equal(phase.loss(MODEL, BATCH, None), phase.loss(MODEL, BATCH, None))


def test_a_scored_model_gives_the_same_probabilities_each_time_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    first = predict(METHOD, MODEL, BATCH)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)
    np.testing.assert_array_equal(predict(METHOD, MODEL, BATCH), first)
