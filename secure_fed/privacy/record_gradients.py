"""Clipped gradients of any loss over a model's components, by a back end's hooks; the model is put back.

What cannot be differentiated record by record is refused here, before a single record is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.back_end import RecordGradients
from secure_fed.privacy.ghost import GhostGradients, GhostHooks
from secure_fed.privacy.hooks import FactoringHooks, HookGradients
from secure_fed.privacy.plan import BackEnd

Loss = Callable[[MultimodalModel, Batch], Tensor]
"""(model, batch of B records) -> one loss per record [B]; a record's loss depends on that record alone."""


class PerRecordLoss(nn.Module):
    """A loss as a module, so that Opacus' hooks see every layer that it calls."""

    def __init__(self, model: MultimodalModel, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Batch) -> Tensor:
        """Losses [B]. Raises PrivacyError where the loss is reduced over records."""
        losses = self._loss(self.model, batch)
        if losses.shape != (len(batch),):
            raise PrivacyError(
                f"the loss returned shape {tuple(losses.shape)} for {len(batch)} records: return one value per "
                "record (reduction='none', then a mean or sum over everything but the records)"
            )
        return losses


@contextmanager
def record_gradients(
    model: MultimodalModel, components: Sequence[str], loss: Loss, back_end: BackEnd = "hooks"
) -> Iterator[RecordGradients]:
    """Freeze all but `components`, hook the model, and restore it on the way out, whatever happens.

    Raises PrivacyError for a layer whose per-record gradient is unknown or that couples records, and where a
    buffer of the model moved meanwhile (the buffers are then put back).
    """
    with only_trained(model, components) as trained:
        refuse_unsupported_layers(model)
        module = PerRecordLoss(model, loss)
        module.training = True  # the validator's wish; the components' own modes are set already
        _refuse_by_validator(module)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        gradients = _hooked(module, trained, back_end)
        try:
            with warnings.catch_warnings():
                # The first layer's input needs no gradient: expected, and the hook fires all the same.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                yield gradients
        finally:
            gradients.close()
            moved = _restore_buffers(model, buffers)
        if moved:
            raise PrivacyError(f"buffer {moved!r} moved while training: it would be released without noise; remove it")


@contextmanager
def only_trained(model: MultimodalModel, components: Sequence[str]) -> Iterator[list[nn.Parameter]]:
    """Freeze all but `components` (the frozen in eval mode), yield their parameters, restore all flags."""
    if not components or len(set(components)) != len(components):
        raise PrivacyError(f"components={list(components)}: expected at least one, and none of them twice")
    trained = [parameter for component in components for parameter in model.component_parameters(component)]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.requires_grad_(False).eval()
        for parameter in trained:
            parameter.requires_grad_(True)
        for component in components:
            model.component_module(component).train()
        yield trained
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode


def refuse_unsupported_layers(model: nn.Module) -> None:
    """Raise PrivacyError for a layer that keeps or changes something by its inputs, or is trained and unknown."""
    for name, module in model.named_modules():
        # InstanceNorm without running statistics treats each record alone and is allowed.
        if isinstance(module, _NormBase) and (module.track_running_stats or "BatchNorm" in type(module).__name__):
            raise PrivacyError(
                f"layer {name!r} is a {type(module).__name__}: it mixes the records of a batch and keeps "
                "un-noised statistics, even where its weights are frozen: use GroupNorm or LayerNorm"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (module.max_norm or module.scale_grad_by_freq):
            raise PrivacyError(
                f"layer {name!r} is a {type(module).__name__} with max_norm={module.max_norm} and "
                f"scale_grad_by_freq={module.scale_grad_by_freq}: the first changes weights, un-noised, by which "
                "tokens occur, the second couples the records of a batch: give None and False"
            )
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if trained and type(module) not in GradSampleModule.GRAD_SAMPLERS:
            known = ", ".join(sorted(layer.__name__ for layer in GradSampleModule.GRAD_SAMPLERS))
            raise PrivacyError(
                f"layer {name!r} is a {type(module).__name__}, whose per-record gradient is not known: "
                f"build it from {known}"
            )
        if trained and getattr(module, "padding_mode", "zeros") != "zeros":
            raise PrivacyError(
                f"layer {name!r} has padding_mode={module.padding_mode!r}, which its per-record gradient ignores: pad "
                "the input with F.pad, and give the layer padding=0"
            )


def _hooked(module: PerRecordLoss, trained: list[nn.Parameter], back_end: BackEnd) -> RecordGradients:
    try:
        if back_end == "ghost":
            ghost = GhostHooks(module, batch_first=True, loss_reduction="sum", strict=True, max_grad_norm=0.0)
            return GhostGradients(ghost, trained)
        return HookGradients(FactoringHooks(module, batch_first=True, loss_reduction="sum", strict=True), trained)
    except NotImplementedError as error:  # a trained layer with a buffer
        raise PrivacyError(f"Opacus refuses the model: {error}") from error


def _refuse_by_validator(module: nn.Module) -> None:
    errors = ModuleValidator.validate(module, strict=False)
    if errors:
        raise PrivacyError(f"Opacus refuses the model: {errors[0]}")


def _restore_buffers(model: nn.Module, before: dict[str, Tensor]) -> str | None:
    """Put every buffer back; the name of the first that had moved, or None."""
    moved = None
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, before[name]):
            moved = moved or name
            buffer.copy_(before[name])
    return moved


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them as one vector [P]."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
