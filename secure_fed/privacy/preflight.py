"""Is this model and loss what DP-SGD takes it for? Asked on made-up records, before any real one is read.

A refusal on private records would itself be an answer about them, so the check never sees any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from secure_fed.data.records import ModalitySpec, Records, Schema, ValueArray
from secure_fed.data.vocabulary import vocabulary
from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.dpsgd import clipped_gradient_sum
from secure_fed.privacy.record_gradients import Loss, flat, only_trained, record_gradients

# float32 sums of a few clipped gradients: the sensitivity may exceed the bound by rounding, never by more.
TOLERANCE = 1e-5
_AGREEMENT = 1e-3


def preflight(model: MultimodalModel, components: Sequence[str], loss: Loss, max_grad_norm: float, seed: int) -> None:
    """Raise PrivacyError where `loss` couples records, passes the hooks by, or exceeds the clip bound.

    Runs on 6 made-up records; the model is left as it was.
    """
    batch = made_up_batch(model, count=6, seed=seed)
    with _without_dropout(model):
        _refuse_coupling(model, components, loss, batch)
        _refuse_missed_gradients(model, components, loss, batch)
        ratio = leave_one_out_sensitivity(model, components, loss, batch, max_grad_norm)
    if ratio > 1.0 + TOLERANCE:
        raise PrivacyError(
            f"one record changes the clipped gradient sum by {ratio:.3g} times max_grad_norm="
            f"{max_grad_norm}: the loss or a layer lets records influence each other"
        )


def leave_one_out_sensitivity(
    model: MultimodalModel, components: Sequence[str], loss: Loss, batch: Batch, max_grad_norm: float
) -> float:
    """max over records x of |clipped sum(D) - clipped sum(D without x)| / C, un-noised; at most 1 if sound."""
    whole = clipped_gradient_sum(model, components, loss, batch, max_grad_norm)
    everyone = torch.arange(len(batch))
    largest = 0.0
    for left_out in range(len(batch)):
        rest = batch.select(everyone[everyone != left_out])
        without = clipped_gradient_sum(model, components, loss, rest, max_grad_norm)
        largest = max(largest, float((whole - without).double().norm()) / max_grad_norm)
    return largest


def made_up_batch(model: MultimodalModel, count: int, seed: int) -> Batch:
    """`count` records that belong to nobody, prepared; the first has all modalities, others miss some."""
    rng = np.random.default_rng(seed)
    schema = model.schema
    presence = {name: rng.random(count) < 0.8 for name in schema.names}
    for present in presence.values():
        present[:1] = True
    return model.prepare(
        Records(
            schema=schema,
            values={spec.name: _made_up_values(spec, presence[spec.name], rng) for spec in schema.modalities},
            presence=presence,
            labels=_made_up_labels(schema, count, rng),
            unit_ids=np.array([f"made-up-{i}" for i in range(count)]),
        )
    )


def _made_up_values(
    spec: ModalitySpec, present: np.ndarray[tuple[int], np.dtype[np.bool_]], rng: np.random.Generator
) -> ValueArray:
    if spec.kind == "text":
        words = np.array([word for column in vocabulary() for word in column.split("_")[-1].split()])
        texts = [" ".join(rng.choice(words, size=12)) if there else "" for there in present]
        return np.array(texts, dtype=object)
    if spec.kind == "image":
        values = rng.random((len(present), *spec.shape))
    else:
        values = rng.standard_normal((len(present), *spec.shape))
    blanked: ValueArray = (values * present.reshape(-1, *[1] * len(spec.shape))).astype(np.float32)
    return blanked


def _made_up_labels(
    schema: Schema, count: int, rng: np.random.Generator
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    labels = (rng.random((count, len(schema.labels))) < 0.5).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    return labels


@contextmanager
def _without_dropout(model: MultimodalModel) -> Iterator[None]:
    """Dropout differs from call to call, which would look like coupling; its masks know nothing of the records."""
    rates = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    try:
        for module, _ in rates:
            module.p = 0.0
        yield
    finally:
        for module, rate in rates:
            module.p = rate


def _refuse_coupling(model: MultimodalModel, components: Sequence[str], loss: Loss, batch: Batch) -> None:
    with only_trained(model, components), torch.no_grad():
        together = loss(model, batch)
        if together.shape != (len(batch),):
            raise PrivacyError(
                f"the loss returned shape {tuple(together.shape)} for {len(batch)} records: return one value "
                "for each of them"
            )
        alone = torch.cat([loss(model, batch.select(torch.tensor([i]))) for i in range(len(batch))])
    if not torch.allclose(together, alone, rtol=_AGREEMENT, atol=_AGREEMENT):
        raise PrivacyError(
            "a record's loss changes with the company it is in: compute it from that record alone (no contrast "
            "over the batch, no batch statistics)"
        )


def _refuse_missed_gradients(model: MultimodalModel, components: Sequence[str], loss: Loss, batch: Batch) -> None:
    """Per-record gradients must add up to what autograd finds: hooks miss weights used past their layer."""
    with record_gradients(model, components, loss) as gradients:
        gradients.backward(batch)
        by_autograd = gradients.plain_sum()
        by_record = flat(gradients.clipped_sums(float("inf")))
    if not torch.allclose(by_record, by_autograd, rtol=_AGREEMENT, atol=_AGREEMENT * float(by_autograd.abs().max())):
        raise PrivacyError(
            "the per-record gradients do not add up to the gradient: the loss uses a layer's weights without "
            "calling the layer (say, tied weights), so part of a record's influence would go uncounted"
        )
