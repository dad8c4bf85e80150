"""Opacus as it comes, used the way that breaks: what the tests of the traps put to the sensitivity test.

Each maker gives callables over our `Batch`, so that the faulty construction and ours are asked the same question.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel

Sum = Callable[[Batch], Tensor]
Forward = Callable[[nn.Module, Batch], Tensor]


def vitals(batch: Batch) -> Tensor:
    """The five vitals of each record [B, 5]."""
    return batch.inputs["vitals"]


def target(batch: Batch) -> Tensor:
    """int64 [B]: the first label of a record, or the last class."""
    return torch.where(batch.labels.any(dim=1), batch.labels.argmax(dim=1), torch.tensor(2))


def vitals_net() -> nn.Linear:
    """Vitals to three logits, always on the same weights."""
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def vitals_logits(net: nn.Module, batch: Batch) -> Tensor:
    """[B, 3]."""
    logits: Tensor = net(vitals(batch))
    return logits


def vitals_loss(model: MultimodalModel, batch: Batch) -> Tensor:
    """The same task for a model of ours: cross entropy [B] over the fusion of the vitals' feature alone."""
    feature = model.encode_one(batch, "vitals")
    others = {name: torch.zeros_like(feature) for name in model.schema.names}
    return F.cross_entropy(model.classify({**others, "vitals": feature}), target(batch), reduction="none")


def private(
    net: nn.Module, *, clip: float, sigma: float = 0.0, engine: PrivacyEngine | None = None, **options: Any
) -> tuple[Any, ...]:
    """What `make_private` returns, over a loader of no importance, with noise off unless asked for."""
    loader = DataLoader(TensorDataset(torch.zeros(64, 5), torch.zeros(64)), batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (engine or PrivacyEngine(accountant="rdp")).make_private(
            module=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
            data_loader=loader,
            noise_multiplier=sigma,
            max_grad_norm=clip,
            **options,
        )


def private_ghost(net: nn.Module, *, clip: float, **options: Any) -> tuple[Any, ...]:
    """Module, optimizer and criterion of ghost clipping, as Opacus' own tutorial sets them up."""
    criterion = nn.CrossEntropyLoss(reduction="mean")
    return private(net, clip=clip, grad_sample_mode="ghost", criterion=criterion, loss_reduction="mean", **options)[:3]


def nothing(net: nn.Module) -> Tensor:
    """The sum over no record, flat."""
    return torch.zeros(sum(p.numel() for p in net.parameters()))


def gradient(net: nn.Module) -> Tensor:
    """The gradients as they stand, flat."""
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in net.parameters()])


def summed(optimizer: DPOptimizer) -> Tensor:
    """What the optimizer is about to noise, flat."""
    return torch.cat([p.summed_grad.flatten() for p in optimizer.params])


def hooks_sum(net: nn.Module, loss: Forward, clip: float, reduction: str = "sum") -> Sum:
    """The clipped sum of Opacus' hooks under `loss`, reduced over the batch as `reduction` says."""
    wrapped, optimizer, _ = private(net, clip=clip, loss_reduction=reduction)

    def clipped_sum(batch: Batch) -> Tensor:
        if not len(batch):
            return nothing(net)
        optimizer.zero_grad()
        loss(wrapped, batch).backward()
        optimizer.clip_and_accumulate()
        return summed(optimizer)

    return clipped_sum


def ghost_sum(net: nn.Module, forward: Forward, clip: float, **options: Any) -> Sum:
    """The clipped sum of Opacus' ghost clipping: cross entropy of `forward`'s logits, by Opacus' own criterion."""
    wrapped, _, criterion = private_ghost(net, clip=clip, **options)

    def clipped_sum(batch: Batch) -> Tensor:
        if not len(batch):
            return nothing(net)
        net.zero_grad()
        criterion(forward(wrapped, batch), target(batch)).backward()
        return gradient(net)

    return clipped_sum
