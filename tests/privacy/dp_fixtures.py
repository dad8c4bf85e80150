"""Small models, batches and losses, and a per-record reference loop that knows nothing of hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import MultimodalModel, build_model
from secure_fed.privacy.noise import ReproducibleNoise
from secure_fed.privacy.plan import GaussianPlan

REPORTS = ("cardiomegaly with small effusion", "no effusion or pneumothorax", "possible edema", "zzz qqq")
PAIRS = [("image", "report"), ("report", "image")]
ENCODERS_AND_FUSION = ("encoder.image", "encoder.report", "encoder.vitals", "fusion")


class SilentNoise(ReproducibleNoise):
    """Real Poisson samples, no Gaussian noise: what is left must equal the clipped gradients exactly."""

    def normal(self, shape: Sequence[int], std: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)


def make_schema(side: int = 16) -> Schema:
    return Schema(
        modalities=(
            ModalitySpec("image", "image", (1, side, side)),
            ModalitySpec("report", "text", ()),
            ModalitySpec("vitals", "tabular", (5,), tuple(f"v{i}" for i in range(5))),
        ),
        labels=("a", "b", "c"),
    )


def make_model(side: int = 16, seed: int = 0, **config: object) -> MultimodalModel:
    """A model away from its zero initialisation, so that every parameter has a gradient."""
    model = build_model(make_schema(side), ModelConfig.model_validate(config), PAIRS, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def make_batch(model: MultimodalModel, n: int = 6, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    schema = model.schema
    presence = {name: rng.random(n) < 0.8 for name in schema.names}
    report = np.array([REPORTS[i % len(REPORTS)] for i in range(n)], dtype=object)
    report[~presence["report"]] = ""
    image = rng.random((n, *schema.modality("image").shape), dtype=np.float32)
    vitals = rng.standard_normal((n, 5)).astype(np.float32)
    records = Records(
        schema=schema,
        values={
            "image": image * presence["image"][:, None, None, None],
            "report": report,
            "vitals": vitals * presence["vitals"][:, None],
        },
        presence=presence,
        labels=(rng.random((n, 3)) < 0.4).astype(np.float32),
        unit_ids=np.array([f"p{i}" for i in range(n)]),
    )
    return model.prepare(records)


def classification_loss(model: MultimodalModel, batch: Batch) -> Tensor:
    logits = model.classify(model.encode(batch))
    losses = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
    return (losses * batch.label_mask).sum(dim=1)


def translation_loss(model: MultimodalModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        features = model.encode(batch)
    both = batch.presence["image"] & batch.presence["report"]
    total = torch.zeros(len(batch))
    for source, target in PAIRS:
        error = model.translate(source, target, features[source]) - features[target]
        total = total + error.square().sum(dim=1) * both
    return total


Loss = Callable[[MultimodalModel, Batch], Tensor]


def reference_gradients(model: MultimodalModel, components: Sequence[str], loss: Loss, batch: Batch) -> Tensor:
    """Per-record gradients [B, P] by plain autograd, one record after another."""
    parameters = [p for component in components for p in model.component_parameters(component)]
    rows = []
    for i in range(len(batch)):
        value = loss(model, batch.select(torch.tensor([i])))
        assert value.shape == (1,)
        gradients = torch.autograd.grad(value.sum(), parameters, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros(p.numel()) if g is None else g.flatten()
                    for p, g in zip(parameters, gradients, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def clipped(rows: Tensor, bound: float) -> Tensor:
    return (rows * (bound / rows.norm(dim=1, keepdim=True).clamp(min=bound))).sum(dim=0)


def flat(model: MultimodalModel, components: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.concatenate([model.get_component(component) for component in components]))


def plan(**changes: object) -> GaussianPlan:
    values = {
        "phase": "test", "max_grad_norm": 1.0, "noise_multiplier": 1.0,
        "sample_rate": 1.0, "steps": 1, "declared_n": 6,
    }  # fmt: skip
    return GaussianPlan(**{**values, **changes})
