"""Mean-filling releases bounded sums of which the ratio is the mean, and solves them with the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fin_example import model_of, records_of, schema_of
from hypothesis import example, given
from hypothesis import strategies as st
from shipped_methods import MEAN_FILL

from secure_fed.errors import ConfigError
from secure_fed.methods import build
from secure_fed.methods.base import StatisticPhase
from secure_fed.methods.mean_fill import count_entry, counted_features, mean_name, solve_mean

SCHEMA = schema_of(3)
EVERYTHING = frozenset(SCHEMA.names)
METHOD = build(MEAN_FILL)
WIDTH, N = 6, 60
PRESENCE = {"vitals": [True] * N, "labs": [i % 3 > 0 for i in range(N)], "notes": [i % 2 > 0 for i in range(N)]}


def statistics(rounds: int = 6) -> list[StatisticPhase]:
    return [phase for phase in METHOD.phases(SCHEMA, (), rounds, WIDTH) if isinstance(phase, StatisticPhase)]


def test_without_noise_every_absent_feature_becomes_the_mean_of_the_records_that_have_one() -> None:
    model = model_of(METHOD, SCHEMA, [EVERYTHING])
    batch = model.prepare(records_of(SCHEMA, PRESENCE))
    for phase in statistics():
        phase.solve(model, phase.map(model, batch, None).double().sum(dim=0).numpy() / 1234.5)  # any positive scale
    features = model.encode(batch)
    filled = METHOD.fill(model, batch, features)
    for name, feature in features.items():
        present = batch.presence[name]
        expected = feature[present].mean(dim=0)
        found = METHOD.impute(model, batch, features)[name].mean
        torch.testing.assert_close(found, expected.expand(N, WIDTH), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(filled[name][~present], found[~present])


@pytest.mark.parametrize("scale", [0.5, 3.0, 40.0])
def test_nothing_is_clipped_whatever_the_scale_of_the_features(scale) -> None:
    model = model_of(METHOD, SCHEMA, [EVERYTHING], {"feature_scale": scale})
    batch = model.prepare(records_of(SCHEMA, PRESENCE))
    for phase in statistics():
        norms = phase.map(model, batch, None).norm(dim=1)
        assert float(norms.max()) <= phase.bound
        assert float(norms.max()) > 0.9 * phase.bound, "a looser bound would be louder noise for nothing"


def test_records_without_the_modality_add_nothing() -> None:
    model = model_of(METHOD, SCHEMA, [EVERYTHING])
    batch = model.prepare(records_of(SCHEMA, PRESENCE))
    rows = counted_features(model, batch, None, "labs", count_entry(WIDTH))
    assert not rows[~batch.presence["labs"]].any()
    assert (rows[batch.presence["labs"], 0] > 0).all()


@example([1e-308, *[0.0] * (WIDTH - 1), 2.0])
@given(st.lists(st.floats(-1e3, 1e3), min_size=1 + WIDTH, max_size=1 + WIDTH))
def test_whatever_the_noise_the_mean_lies_where_means_can_lie(noised) -> None:
    solve_mean(NOISED, np.array(noised), "labs", count_entry(WIDTH))
    mean = NOISED.get_component(mean_name("labs"))
    # float32 of numbers up to 3: a few units in the last place.
    assert np.linalg.norm(mean.astype(np.float64)) <= NOISED.encoder("labs").scale * (1 + 1e-6)
    if noised[0] <= 0:
        assert not mean.any(), "a count that noise has made negative says nothing"


NOISED = model_of(METHOD, SCHEMA, [EVERYTHING])


@pytest.mark.parametrize(
    ("rounds", "releases", "at"), [(18, 3, (5, 11, 17)), (5, 2, (1, 4)), (3, 3, (0, 1, 2)), (7, 1, (6,))]
)
def test_means_are_released_evenly_and_in_the_last_round(rounds, releases, at) -> None:
    method = build(MEAN_FILL.model_copy(update={"releases": releases}))
    phases = [phase for phase in method.phases(SCHEMA, (), rounds, WIDTH) if isinstance(phase, StatisticPhase)]
    assert {phase.at for phase in phases} == {at}
    assert [phase.slice_name for phase in phases] == ["statistic.vitals", "statistic.labs", "statistic.notes"]


def test_more_releases_than_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.releases=2 in federation\.rounds=1"):
        statistics(rounds=1)
