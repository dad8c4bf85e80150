"""The phase of `evaluation=federated`: which scores of held-out records are counted, in which cells, at which steps.

A view is what a score was computed from, by the names of the modalities: `image+text`, or `text` alone. All of it
is public; the counts are noised and charged like any other release.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.federation.config import FederatedEvaluation
from secure_fed.methods import Method
from secure_fed.methods.base import HistogramPhase, PublicContext
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel

PHASE = "evaluation"
_PREFIX = f"{PHASE}."
NEGATIVE, POSITIVE = 0, 1
_DRAWS_SEED = 2012


def slice_of(modalities: Sequence[str]) -> str:
    """The slice that counts the scores computed from exactly `modalities` (in the schema's order)."""
    return _PREFIX + "+".join(modalities)


def view_of(name: str) -> str:
    """The view that a slice counts, as `image+text`."""
    return name.removeprefix(_PREFIX)


def steps_of(config: FederatedEvaluation, rounds: int) -> tuple[int, ...]:
    """The steps at which a run of `rounds` training rounds is evaluated: evenly spread, the last one after them.

    At step s the model is the one that round s begins from; step `rounds` is one more, which trains nothing.
    """
    return tuple(number * rounds // config.evaluations for number in range(1, config.evaluations + 1))


def candidates(config: FederatedEvaluation, schema: Schema, owned: Sequence[frozenset[str]]) -> tuple[str, ...]:
    """Slices of all views that are asked for: everything present; and, unless views=full, everything but one
    modality, and what each site has."""
    everything = frozenset(schema.names)
    wanted = {everything}
    if config.views == "all":
        wanted |= {everything - {name} for name in schema.names}
        wanted |= set(owned)
    named = [slice_of([name for name in schema.names if name in view]) for view in wanted if view]
    return tuple(sorted(named, key=lambda name: (-name.count("+"), name)))


def evaluation_phase(
    config: FederatedEvaluation, schema: Schema, method: Method, slices: Sequence[str], rounds: int
) -> HistogramPhase:
    """The phase over the slices that enough sites own: for each label a histogram of scores by truth."""
    return HistogramPhase(
        name=PHASE,
        slices=tuple(slices),
        cells=partial(cells, method=method, bins=config.bins, logit_range=config.logit_range),
        groups=len(schema.labels),
        width=2 * config.bins,
        at=steps_of(config, rounds),
    )


def cells(
    model: MultimodalModel,
    name: str,
    batch: Batch,
    context: PublicContext | None,
    *,
    method: Method,
    bins: int,
    logit_range: float,
) -> Tensor:
    """The cell of each record's score and truth for each label in one slice: int64 [B, L], -1 for none.

    The score is computed from the view's modalities, whatever else the record has: those are taken away. A record
    that lacks one of them touches no cell, nor does an unknown label or a score that is not a number. Cell
    truth * bins + b holds the scores whose logit lies in the b-th of `bins` equal parts of [-logit_range,
    logit_range]; the outermost hold what lies beyond. The parts are fixed beforehand and public.
    """
    model.eval()
    needed = frozenset(view_of(name).split("+"))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # A method may draw what it fills in: from the generator as it stands, a record's draws would depend on how many
        # were scored before it, and one record more would move all that follow to other cells.
        torch.default_generator.manual_seed(_DRAWS_SEED)
        logits = method.logits(model, batch.without(set(batch.inputs) - needed).unlabelled(), context)
    present = torch.stack([batch.presence[modality] for modality in sorted(needed)]).all(dim=0)
    counted = present.unsqueeze(1) & (batch.label_mask > 0) & ~torch.isnan(logits)
    truth = torch.where(batch.labels > 0, POSITIVE, NEGATIVE)
    return torch.where(counted, truth * bins + binned(logits, bins, logit_range), -1)


def binned(logits: Tensor, bins: int, logit_range: float) -> Tensor:
    """Which of `bins` equal parts of [-logit_range, logit_range] each logit lies in: int64, of the same shape."""
    place = (logits.nan_to_num() + logit_range) * (bins / (2 * logit_range))
    return place.floor().clamp(0, bins - 1).to(torch.int64)
