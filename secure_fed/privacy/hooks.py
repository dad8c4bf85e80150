"""Clipped gradients from per-record gradients, by Opacus' hooks; the only back end that serves a patient as unit.

The norm that is clipped is that of what is released: per-record gradients are summed by unit first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch
from secure_fed.models.units import UnitRows
from secure_fed.privacy.back_end import RecordGradients
from secure_fed.privacy.contributions import Contribution, Factors, Rows, clip_factors


class FactoringHooks(GradSampleModule):  # type: ignore[misc]  # opacus is untyped
    """Opacus' hooks, except that a linear layer applied once to [B, I] keeps the two factors of its gradient.

    A record's weight gradient is the outer product of output gradient b and input a: `contributions.Factors` needs
    no [B, O, I] gradients, which are most of the time of a small model.
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
        if not getattr(module, "activations", None):
            raise PrivacyError(
                f"a gradient reached a {type(module).__name__} more often than it was called: the loss takes a "
                "backward pass of its own; let it return its values only"
            )
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


class HookGradients(RecordGradients):
    """Per-record gradients of the last batch, as rows [B, P_i] or factors, summed by unit when clipped."""

    _units: UnitRows | None = None

    def backward(self, batch: Batch) -> None:
        """As RecordGradients; hooks pair inputs and gradients wrongly where a layer's output is partly unused."""
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
        self._units = None if batch.unit == "record" else batch.unit_rows()

    def clipped_sums(self, max_grad_norm: float) -> list[Tensor]:
        """As RecordGradients."""
        sums = {id(parameter): torch.zeros_like(parameter) for parameter in self.trained}
        found = self._contributions()
        contributions: Sequence[Contribution] = (
            found if self._units is None else [part.by_unit(self._units) for part in found]
        )
        if contributions:
            norms = torch.stack([part.norms() for part in contributions]).norm(dim=0)
            finite = torch.isfinite(norms)
            if not finite.all():
                # 0 * inf is NaN, so a zero factor would not be enough.
                contributions = [part.without(~finite) for part in contributions]
            factors = clip_factors(norms, max_grad_norm)
            for part in contributions:
                for parameter, clipped in part.weighted_sums(factors):
                    sums[id(parameter)] = sums[id(parameter)] + clipped
        return list(sums.values())

    def _contributions(self) -> Sequence[Rows | Factors]:
        found: list[Rows | Factors] = []
        for layer in self._layers:
            if hasattr(layer, "factors"):
                weight, bias = layer.weight, layer.bias
                found.append(
                    Factors(*layer.factors, *(p if p is not None and p.requires_grad else None for p in (weight, bias)))
                )
        for parameter in self.trained:
            rows = parameter.grad_sample  # type: ignore[attr-defined]
            if rows is not None:
                found.append(Rows(rows.flatten(start_dim=1), parameter))
        return found
