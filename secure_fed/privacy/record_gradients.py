"""Per-record gradients of any loss over a model's components, by Opacus' hooks; the model is put back.

What cannot be differentiated record by record is refused here, before a single record is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel

_TINY = 1e-6  # as in Opacus: keeps a zero gradient's factor finite

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


class FactoringHooks(GradSampleModule):  # type: ignore[misc]  # opacus is untyped
    """Opacus' hooks, except that a linear layer applied once to [B, I] keeps the two factors of its gradient.

    A record's weight gradient is the outer product of output gradient b and input a, so its norm is |a| |b|
    (Goodfellow, arXiv 1510.01799) and the clipped sum is one matrix product (Bu et al., arXiv 2210.00038):
    the [B, O, I] gradients need not be written down, which is most of the time of a small model.
    """

    def capture_backprops_hook(
        self,
        module: nn.Module,
        _forward_input: Any,
        forward_output: Any,
        loss_reduction: str,
        batch_first: bool,
    ) -> None:
        """As Opacus calls it, once per application of `module`."""
        if _applied_once_to_rows(module):
            activations: list[list[Tensor]] = module.activations  # type: ignore[assignment]
            module.factors = (activations.pop()[0], forward_output[0].detach())  # type: ignore[assignment]
            for parameter in module.parameters(recurse=False):
                parameter._forward_counter = 0  # type: ignore[attr-defined]
        else:
            super().capture_backprops_hook(module, _forward_input, forward_output, loss_reduction, batch_first)


def _applied_once_to_rows(module: nn.Module) -> bool:
    if type(module) is not nn.Linear:
        return False
    activations: list[list[Tensor]] = module.activations  # type: ignore[assignment]
    parameters = list(module.parameters(recurse=False))
    once = all(getattr(p, "_forward_counter", 1) == 1 for p in parameters)
    first = not any(hasattr(p, "_current_grad_sample") for p in parameters)  # not the last of several
    return once and first and len(activations) == 1 and activations[0][0].ndim == 2


class RecordGradients:
    """Per-record gradients of the last batch, as rows [B, P_i] or factors. Made by `record_gradients`."""

    def __init__(self, wrapped: FactoringHooks, trained: list[nn.Parameter]) -> None:
        self.trained = trained
        self._wrapped = wrapped
        self._layers = [m for m in wrapped.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]

    def backward(self, batch: Batch) -> None:
        """Per-record gradients of `batch` (B >= 1), replacing those of the batch before.

        A parameter that the loss does not reach has none, which counts as zero. Raises PrivacyError where a
        layer's output was computed and only partly used: hooks would pair the wrong inputs and gradients.
        """
        self.clear()
        losses: Tensor = self._wrapped(batch)
        if losses.requires_grad:
            torch.autograd.backward(losses.sum())
        for layer in self._layers:
            for name, parameter in layer.named_parameters(recurse=False):
                if hasattr(parameter, "_current_grad_sample"):
                    raise PrivacyError(
                        f"{type(layer).__name__}.{name} was applied more often than its result was used in "
                        "the loss: compute only what the loss needs, or detach the rest"
                    )

    def clipped_sums(self, max_grad_norm: float) -> list[Tensor]:
        """For each trained parameter: sum over records of g * min(1, C / |g|), |g| over all of them together.

        A record whose gradient is not finite, or whose norm overflows, adds zero.
        """
        sums = {id(parameter): torch.zeros_like(parameter) for parameter in self.trained}
        contributions = self._contributions()
        if contributions:
            norms = torch.stack([part.norms() for part in contributions]).norm(dim=0)
            finite = torch.isfinite(norms)
            if not finite.all():
                # 0 * inf is NaN, so a zero factor would not be enough.
                contributions = [part.without(~finite) for part in contributions]
            factors = torch.where(finite, (max_grad_norm / (norms + _TINY)).clamp(max=1.0), 0.0)
            for part in contributions:
                for parameter, clipped in part.weighted_sums(factors):
                    sums[id(parameter)] = sums[id(parameter)] + clipped
        return list(sums.values())

    def plain_sum(self) -> Tensor:
        """What autograd makes of the last batch: the un-clipped gradient sum, flat [P]."""
        return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained])

    def clear(self) -> None:
        """Forget what the hooks hold of an earlier batch, also where its backward pass never came."""
        for layer in self._layers:
            for attribute in ("activations", "max_batch_len", "factors"):
                if hasattr(layer, attribute):
                    delattr(layer, attribute)
        for parameter in self.trained:
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus' own attributes
            parameter._forward_counter = 0  # type: ignore[attr-defined]

    def close(self) -> None:
        """Take every trace of the hooks off the model."""
        self._wrapped.remove_hooks()
        self.clear()
        for parameter in self.trained:
            for attribute in (
                "grad_sample",
                "summed_grad",
                "_forward_counter",
            ):  # the second is DPOptimizer's
                if hasattr(parameter, attribute):
                    delattr(parameter, attribute)

    def _contributions(self) -> list[_Rows | _Factors]:
        found: list[_Rows | _Factors] = []
        for layer in self._layers:
            if hasattr(layer, "factors"):
                weight, bias = layer.weight, layer.bias
                found.append(
                    _Factors(
                        *layer.factors,
                        *(p if p is not None and p.requires_grad else None for p in (weight, bias)),
                    )
                )
        for parameter in self.trained:
            rows = parameter.grad_sample  # type: ignore[attr-defined]
            if rows is not None:
                found.append(_Rows(rows.flatten(start_dim=1), parameter))
        return found


@dataclass(frozen=True)
class _Rows:
    """The gradients of one parameter, a row per record: [B, P]."""

    rows: Tensor
    parameter: nn.Parameter

    def norms(self) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(self.rows, dim=1)
        return norms

    def without(self, records: Tensor) -> _Rows:
        return _Rows(self.rows.masked_fill(records.unsqueeze(1), 0.0), self.parameter)

    def weighted_sums(self, weights: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        summed: Tensor = weights @ self.rows
        return [(self.parameter, summed.view_as(self.parameter))]


@dataclass(frozen=True)
class _Factors:
    """Gradients of a linear layer: outer products of `outputs` [B, O] and `inputs` [B, I]; bias included."""

    inputs: Tensor
    outputs: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def norms(self) -> Tensor:
        # float64, for the factors may be far smaller and larger than their product.
        squared = torch.zeros(len(self.inputs), dtype=torch.float64)
        if self.weight is not None:
            squared += self.inputs.double().square().sum(dim=1)
        if self.bias is not None:
            squared += 1.0
        squared = squared * self.outputs.double().square().sum(dim=1)
        return squared.sqrt().to(self.outputs.dtype)

    def without(self, records: Tensor) -> _Factors:
        drop = records.unsqueeze(1)
        return _Factors(self.inputs.masked_fill(drop, 0.0), self.outputs.masked_fill(drop, 0.0), self.weight, self.bias)

    def weighted_sums(self, weights: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        outputs = weights.unsqueeze(1) * self.outputs
        sums = [] if self.weight is None else [(self.weight, outputs.T @ self.inputs)]
        return sums if self.bias is None else [*sums, (self.bias, outputs.sum(dim=0))]


@contextmanager
def record_gradients(model: MultimodalModel, components: Sequence[str], loss: Loss) -> Iterator[RecordGradients]:
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
        try:
            wrapped = FactoringHooks(module, batch_first=True, loss_reduction="sum", strict=True)
        except NotImplementedError as error:  # a trained layer with a buffer
            raise PrivacyError(f"Opacus refuses the model: {error}") from error
        gradients = RecordGradients(wrapped, trained)
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
    """Raise PrivacyError for a layer that keeps statistics of its inputs, or is trained and unknown."""
    for name, module in model.named_modules():
        # InstanceNorm without running statistics treats each record alone and is allowed.
        if isinstance(module, _NormBase) and (module.track_running_stats or "BatchNorm" in type(module).__name__):
            raise PrivacyError(
                f"layer {name!r} is a {type(module).__name__}: it mixes the records of a batch and keeps "
                "un-noised statistics, even where its weights are frozen: use GroupNorm or LayerNorm"
            )
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if trained and type(module) not in GradSampleModule.GRAD_SAMPLERS:
            known = ", ".join(sorted(layer.__name__ for layer in GradSampleModule.GRAD_SAMPLERS))
            raise PrivacyError(
                f"layer {name!r} is a {type(module).__name__}, whose per-record gradient is not known: "
                f"build it from {known}"
            )


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
