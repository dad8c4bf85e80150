"""Small models, batches and losses, and a per-record reference loop that knows nothing of hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.methods import Method
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import MultimodalModel, build_model
from secure_fed.models.translators import translator_parts
from secure_fed.privacy.dpsgd import clipped_gradient_sum
from secure_fed.privacy.noise import ReproducibleNoise
from secure_fed.privacy.plan import BackEnd, GaussianPlan
from secure_fed.privacy.sensitivity import leave_one_out_sensitivity

REPORTS = ("cardiomegaly with small effusion", "no effusion or pneumothorax", "possible edema", "zzz qqq")
PAIRS = [("image", "report"), ("report", "image")]
TRANSLATORS = tuple(f"translator.{a}_to_{b}" for a, b in PAIRS)
ENCODERS_AND_FUSION = ("encoder.image", "encoder.report", "encoder.vitals", "fusion")


class SilentNoise(ReproducibleNoise):
    """Real Poisson samples, no Gaussian noise: what is left must equal the clipped gradients exactly."""

    def normal(self, shape: Sequence[int], std: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def noised(self, total: Tensor, std: float) -> Tensor:
        return total.clone()


def make_schema(side: int = 16) -> Schema:
    return Schema(
        modalities=(
            ModalitySpec("image", "image", (1, side, side)),
            ModalitySpec("report", "text", ()),
            ModalitySpec("vitals", "tabular", (5,), tuple(f"v{i}" for i in range(5))),
        ),
        labels=("a", "b", "c"),
    )


def make_model(side: int = 16, seed: int = 0, method: Method | None = None, **config: object) -> MultimodalModel:
    """A model away from its zero initialisation, so that every parameter has a gradient; with a method's parts."""
    chosen, schema = ModelConfig.model_validate(config), make_schema(side)
    parts = translator_parts(chosen, PAIRS) if method is None else method.parts(schema, PAIRS, chosen)
    model = build_model(schema, chosen, parts, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def make_batch(model: MultimodalModel, n: int = 6, seed: int = 0, patients: Sequence[int] | None = None) -> Batch:
    """`n` records; with `patients` a patient's number for each, and the patient is the unit."""
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
        unit_ids=np.array([f"p{i}" for i in (range(n) if patients is None else patients)]),
    )
    return model.prepare(records, "record" if patients is None else "patient")


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

SHIPPED = {
    "filterbank, ngrams, linear": ({}, ENCODERS_AND_FUSION, classification_loss),
    "small_cnn, tabular mlp": (
        {"image": {"name": "small_cnn"}, "tabular": {"name": "mlp"}},
        ENCODERS_AND_FUSION,
        classification_loss,
    ),
    "resnet18": ({"image": {"name": "resnet18"}}, ("encoder.image", "fusion"), classification_loss),
    "bert_small": (
        {"text": {"name": "bert_small", "hidden": 16, "max_tokens": 12, "hash_buckets": 8}},
        ("encoder.report", "fusion"),
        classification_loss,
    ),
    "translator mlp": ({}, TRANSLATORS, translation_loss),
    "translator linear": ({"translator": {"name": "linear"}}, TRANSLATORS, translation_loss),
    "translator transformer": ({"translator": {"name": "transformer"}}, TRANSLATORS, translation_loss),
    "translator normalised": (
        {"translator": {"name": "mlp", "normalise_output": True}},
        TRANSLATORS,
        translation_loss,
    ),
}


def shipped(name: str) -> tuple[MultimodalModel, Sequence[str], Loss]:
    """A model away from zero, the components that a loss trains, and the loss."""
    config, components, loss = SHIPPED[name]
    return make_model(side=16, **config), components, loss


def sensitivity(
    model: MultimodalModel,
    components: Sequence[str],
    loss: Loss,
    batch: Batch,
    bound: float,
    back_end: BackEnd = "hooks",
) -> float:
    """The most that one unit of `batch` changes the clipped sum, over the bound."""
    return leave_one_out_sensitivity(
        lambda records: clipped_gradient_sum(model, components, loss, records, bound, back_end), batch, bound
    )


def reference_gradients(model: MultimodalModel, components: Sequence[str], loss: Loss, batch: Batch) -> Tensor:
    """Gradients by unit [U, P] by plain autograd, one unit after another in ascending order of their numbers."""
    parameters = [p for component in components for p in model.component_parameters(component)]
    rows = []
    for unit in sorted(set(batch.units.tolist())):
        value = loss(model, batch.select(batch.units == unit))
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
    norms = rows.double().norm(dim=1, keepdim=True).float()
    return (rows * (bound / norms.clamp(min=bound))).sum(dim=0)


def flat(model: MultimodalModel, components: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.concatenate([model.get_component(component) for component in components]))


def plan(**changes: object) -> GaussianPlan:
    values = {
        "phase": "test", "max_grad_norm": 1.0, "noise_multiplier": 1.0,
        "sample_rate": 1.0, "steps": 1, "declared_n": 6,
    }  # fmt: skip
    return GaussianPlan(**{**values, **changes})


def model_with_a_layer_of_no_known_gradient():
    """A model whose fusion trains a layer that Opacus has no per-record gradient for: `Scale`."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))

        def forward(self, x):
            return x * self.weight

    model = make_model()
    model.fusion = nn.Sequential(nn.Linear(96, 32), Scale(), nn.Linear(32, 3))
    model._components = model._name_components()
    return model
