"""A run's public set by its digest, and the context that everybody computes from it alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.errors import ConfigError, SecAggError
from secure_fed.federation import public_set as public_sets
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.public_set import PublicSet, context_from, context_of, digest_needed, made_up_context
from secure_fed.federation.wire import hash_arrays
from secure_fed.methods.car_mfl import CarMfl

SITES = [Site(f"site0{i}", frozenset({"image", "text"}), 100) for i in range(1, 6)]


@pytest.fixture
def calls(monkeypatch) -> list[bytes]:
    """The models that car_mfl made a context with."""
    made: list[bytes] = []
    original = CarMfl.public_context

    def spy(self, model, public):
        made.append(model.digest())
        assert not model.training
        return original(self, model, public)

    monkeypatch.setattr(CarMfl, "public_context", spy)
    for cache in ("_BATCHES", "_CONTEXTS", "_MADE_UP"):
        monkeypatch.setattr(public_sets, cache, public_sets._Latest(2))
    return made


@pytest.fixture
def federation(make_config, calls) -> Federation:
    return Federation(make_config("method=car_mfl", "federation.public_fraction=0.2"), SITES)


def public_for(federation: Federation, n: int = 4, seed: int = 0) -> PublicSet:
    rng = np.random.default_rng(seed)
    schema = federation.schema
    texts = np.empty(n, dtype=object)
    texts[:] = ["no effusion"] * n
    shape = schema.modality("image").shape
    return PublicSet.of(
        Records(
            schema=schema,
            values={"image": rng.random((n, *shape), dtype=np.float32), "text": texts},
            presence={name: np.ones(n, dtype=bool) for name in schema.names},
            labels=(rng.random((n, len(schema.labels))) < 0.5).astype(np.float32),
            unit_ids=np.array([f"p{i}" for i in range(n)]),
        )
    )


# -- by its digest ---------------------------------------------------------------------------------------------


def test_a_set_is_taken_back_under_its_digest_and_under_no_other(federation) -> None:
    public = public_for(federation)
    found = PublicSet.received(federation.schema, public.digest, public.arrays)
    assert PublicSet.of(found.records).digest == public.digest == hash_arrays(public.arrays)
    other = public_for(federation, seed=1)
    with pytest.raises(SecAggError, match="public_set_mismatch"):
        PublicSet.received(federation.schema, public.digest, other.arrays)


@pytest.mark.parametrize("change", ["dtype", "shape", "name", "missing"])
def test_the_digest_binds_names_types_and_shapes_not_bytes_alone(federation, change) -> None:
    public = public_for(federation)
    arrays = dict(public.arrays)
    image = arrays.pop("values/image")
    match change:
        case "dtype":
            arrays["values/image"] = image.view(np.int32)
        case "shape":
            arrays["values/image"] = image.reshape(len(image), -1)
        case "name":
            arrays["values/film"] = image
    with pytest.raises(SecAggError, match="public_set_mismatch"):
        PublicSet.received(federation.schema, public.digest, arrays)


def test_a_set_of_another_schema_is_bad_under_its_own_digest(federation) -> None:
    public = public_for(federation)
    other = Schema((ModalitySpec("image", "image", (1, 8, 8)), ModalitySpec("text", "text", ())), ("a",))
    with pytest.raises(SecAggError, match="bad_public_set"):
        PublicSet.received(other, public.digest, public.arrays)


def test_a_method_that_needs_a_set_needs_to_be_told_which(federation, make_config) -> None:
    with pytest.raises(ConfigError, match=r"federation\.public_set names none"):
        digest_needed(federation)
    named = make_config("method=car_mfl", "federation.public_fraction=0.2", f"federation.public_set='{'ab' * 32}'")
    assert digest_needed(Federation(named, SITES)) == "ab" * 32


@pytest.mark.parametrize("wrong", ["AB" * 32, "ab" * 31, "''", "nothing"])
def test_a_digest_that_is_none_is_refused(make_config, wrong) -> None:
    with pytest.raises(ConfigError, match="public_set"):
        make_config(f"federation.public_set={wrong}")


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, "nan"])
def test_a_fraction_that_is_none_is_refused(make_config, fraction) -> None:
    with pytest.raises(ConfigError, match="public_fraction"):
        make_config(f"federation.public_fraction={fraction}")


# -- the context -----------------------------------------------------------------------------------------------


def test_without_a_set_there_is_no_context(federation, calls, make_config) -> None:
    assert context_of(federation, federation.model, None) is None
    assert made_up_context(Federation(make_config("method=fin"), SITES)) is None
    assert calls == []


def test_a_context_is_computed_once_for_each_model_and_set_in_a_process(federation, calls) -> None:
    public, again = public_for(federation), public_for(federation)
    first, second = federation.new_model(), federation.new_model()
    contexts = [context_of(federation, model, item) for model in (first, second) for item in (public, again)]
    assert len(calls) == 1
    assert all(context is contexts[0] for context in contexts)
    with torch.no_grad():
        next(second.parameters()).add_(1.0)
    moved = context_of(federation, second, public)
    other = context_of(federation, first, public_for(federation, seed=1))
    assert len(calls) == 3
    assert not torch.equal(moved.tensors["feature.image"], contexts[0].tensors["feature.image"])
    assert not torch.equal(other.tensors["feature.image"], contexts[0].tensors["feature.image"])


def test_no_gradient_runs_through_a_context_and_the_model_is_left_as_it_was(federation) -> None:
    model = federation.new_model().train()
    context = context_of(federation, model, public_for(federation))
    assert model.training
    assert not any(tensor.requires_grad for tensor in context.tensors.values())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_method_that_fails_leaves_the_model_as_it_was(federation, monkeypatch) -> None:
    def fail(self, model, public):
        raise ValueError

    monkeypatch.setattr(CarMfl, "public_context", fail)
    model = federation.new_model().train()
    with pytest.raises(ValueError):
        context_from(federation.method, model, model.prepare(public_for(federation).records))
    assert model.training


def test_a_preflights_context_comes_from_a_made_up_set_once(federation, calls) -> None:
    first = made_up_context(federation)
    assert made_up_context(federation) is first
    assert len(calls) == 1
