"""What a model costs to use: its parameters, and the floating-point operations of one record.

Counted while they run, loops of a method included; data, noise and hardware have no part in it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from secure_fed.data.records import Records
from secure_fed.methods import Method
from secure_fed.methods.base import PublicContext
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.server.evaluation import repeatable_draws


@dataclass(frozen=True)
class Cost:
    """parameters: by component. inference: FLOPs from one record's raw values to its logits, every modality present.

    imputation: FLOPs of the method's imputation for one record, by the modality that it lacks. All as torch's counter
    counts them: two for a multiply-add of a matrix product, convolution or attention, none for what is elementwise or
    looked up.
    """

    parameters: dict[str, int]
    inference: int
    imputation: dict[str, int]


def cost_of(method: Method, model: MultimodalModel, records: Records, context: PublicContext | None = None) -> Cost:
    """The cost of one record like the first of `records` that has every modality, of which there must be at least one.

    `method` must be fresh: what it remembers of records, it would not compute again.
    """
    model.eval()
    record = _unseen(records)
    with torch.no_grad(), repeatable_draws():
        with FlopCounterMode(display=False) as inference:
            prepared = model.prepare(record).unlabelled()
            method.logits(model, prepared, context)
        imputation = {}
        for name in prepared.inputs:
            lacking = method.complete_inputs(model, prepared.without({name}), context)
            features = model.encode(lacking)
            with FlopCounterMode(display=False) as counter:
                method.impute(model, lacking, features, context)
            imputation[name] = counter.get_total_flops()
    return Cost(model.component_sizes(), inference.get_total_flops(), imputation)


def _unseen(records: Records) -> Records:
    """One record that no cache of prepared values can hold: a number or a word of each modality is drawn anew."""
    present = np.logical_and.reduce(list(records.presence.values()))
    first = records.select([int(present.argmax())])
    values = {}
    for spec in records.schema.modalities:
        value = np.array(first.values[spec.name])
        if spec.kind == "text":
            value[0] = f"{value[0]} {secrets.token_hex(4)}"
        else:
            value.reshape(-1)[0] = secrets.randbelow(2**24) / 2**24
        values[spec.name] = value
    return replace(first, values=values, presence={name: np.ones(1, dtype=bool) for name in values})
