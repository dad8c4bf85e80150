"""Clipped gradients from their norms alone: one backward pass for the norms, a second for the weighted sum.

Fast gradient clipping and ghost norms (Lee and Kifer, arXiv 2009.03106; Li et al., arXiv 2110.05679), over Opacus.
The second pass sums what autograd finds, so all that it finds must be in the norms: this file refuses the rest.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from secure_fed.errors import PrivacyError
from secure_fed.models.batch import Batch
from secure_fed.privacy.back_end import RecordGradients
from secure_fed.privacy.contributions import clip_factors, row_norms

# The second pass repeats the first in float32 arithmetic scaled by the clip factor. With this share of the tokens'
# lengths in its square, a norm is at least 3e-4 of their sum, and what rounding adds where tokens cancel stays below
# 2e-4 of the clip bound; it lengthens the norm of 100 tokens that do not cancel by 5e-6.
_ROUNDING = 1e-7

PATIENT_REFUSAL = (
    "back_end='ghost' knows the norms of single records' gradients, and the norm of a patient's sum does not follow "
    "from those: with unit='patient' give back_end='hooks'"
)


def linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Norms [B] of the per-record gradients of a linear layer on [B, ..., I]: Li et al., equation 2, in float64.

    Opacus' own works in float32, where a record whose tokens nearly cancel, or whose factors under- and overflow,
    gets a norm that is too small; and gives none for four dimensions and more.
    """
    inputs = activations[0].double().reshape(len(backprops), -1, activations[0].shape[-1])
    outputs = backprops.double().reshape(len(backprops), -1, backprops.shape[-1])
    output_gram = outputs @ outputs.transpose(1, 2)
    grams: dict[Tensor, Tensor] = {layer.weight: inputs @ inputs.transpose(1, 2) * output_gram}
    if layer.bias is not None:
        grams[layer.bias] = output_gram
    norms = {}
    for parameter, gram in grams.items():
        lengths = gram.diagonal(dim1=1, dim2=2).sqrt().sum(dim=1)
        several = _ROUNDING if gram.shape[1] > 1 else 0.0
        squared = gram.sum(dim=(1, 2)).clamp(min=0.0) + several * lengths.square()
        norms[parameter] = squared.sqrt().to(backprops.dtype)
    return norms


def written_out_norms(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Norms [B] of a layer's per-record gradients, written out for it alone; Opacus would sum them in float32."""
    samples = GradSampleModuleFastGradientClipping.GRAD_SAMPLERS[type(layer)](layer, activations, backprops)
    return {parameter: row_norms(rows.flatten(start_dim=1)) for parameter, rows in samples.items()}


class GhostHooks(GradSampleModuleFastGradientClipping):  # type: ignore[misc]  # opacus is untyped
    """Opacus' ghost hooks with our norms for all layers but embeddings, whose norms it sums over single words."""

    NORM_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = {
        **dict.fromkeys(GradSampleModuleFastGradientClipping.GRAD_SAMPLERS, written_out_norms),
        **GradSampleModuleFastGradientClipping.NORM_SAMPLERS,
        nn.Linear: linear_norms,
    }


class GhostGradients(RecordGradients):
    """Norms of the last batch's per-record gradients, and its graph for the weighted pass.

    The clip norm is an argument of `clipped_sums`: the wrapped module's own is 0 and never read, so that there are
    no two bounds to disagree.
    """

    _losses: Tensor | None = None
    _norms: Tensor | None = None

    def backward(self, batch: Batch) -> None:
        """As RecordGradients, for unit="record" only. A record that is not finite is left out, and the rest redone."""
        if batch.unit != "record":
            raise PrivacyError(PATIENT_REFUSAL)
        while True:
            self.clear()
            losses = self._forward(batch)
            if not losses.requires_grad:
                return
            self._refuse_uncounted_uses(losses)
            self._wrapped.enable_hooks()
            torch.autograd.backward(losses.sum(), retain_graph=True)
            self._wrapped.disable_hooks()
            norms = self._joint_norms()
            finite = torch.isfinite(norms)
            if finite.all():
                self._losses, self._norms = losses, norms
                return
            # A zero weight would not do: 0 * inf is NaN, and it would reach the sum of everybody.
            batch = batch.select(finite)
            if len(batch) == 0:
                self.clear()
                return

    def clipped_sums(self, max_grad_norm: float) -> list[Tensor]:
        """As RecordGradients: the second backward pass, each record's loss weighted by its clip factor."""
        if self._losses is None or self._norms is None:
            return [torch.zeros_like(parameter) for parameter in self.trained]
        factors = clip_factors(self._norms, max_grad_norm)
        sums = torch.autograd.grad(self._losses, self.trained, factors, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(parameter) if summed is None else summed
            for parameter, summed in zip(self.trained, sums, strict=True)
        ]

    def clear(self) -> None:
        """As RecordGradients; the graph of the last batch is let go, too."""
        super().clear()
        self._losses = self._norms = None

    def _forward(self, batch: Batch) -> Tensor:
        self._wrapped.enable_hooks()
        try:
            losses: Tensor = self._wrapped(batch)
        except NotImplementedError as error:  # Opacus, of a layer that is called twice
            raise PrivacyError(f"back_end='ghost': {error}: call each layer once, or give back_end='hooks'") from error
        return losses

    def _refuse_uncounted_uses(self, losses: Tensor) -> None:
        """Every way from a trained parameter to the loss must lead through the one call that its norm is taken of."""
        uses = _uses(losses)
        for layer in self._layers:
            calls = len(getattr(layer, "activations", ()))
            for name, parameter in layer.named_parameters(recurse=False):
                used = uses.get(id(parameter), 0)
                if parameter.requires_grad and (used > 1 or calls > 1 or used > calls):
                    raise PrivacyError(
                        f"back_end='ghost': {type(layer).__name__}.{name} is used {used} times in the loss, in {calls} "
                        "calls of its layer, and its norm is known for one use in one call: call each layer once and "
                        "use no weight outside its layer (tied weights), or give back_end='hooks'"
                    )

    def _joint_norms(self) -> Tensor:
        reached = [parameter for parameter in self.trained if parameter.grad is not None]
        unknown = [parameter for parameter in reached if not hasattr(parameter, "_norm_sample")]
        if unknown:
            raise PrivacyError(
                f"back_end='ghost': no norm is known for a parameter of shape {tuple(unknown[0].shape)}, though "
                "the loss reaches it: give back_end='hooks'"
            )
        norms: Tensor = torch.stack([p._norm_sample for p in reached]).norm(dim=0)  # type: ignore[attr-defined]
        return norms


def _uses(losses: Tensor) -> dict[int, int]:
    """How many edges of the graph of `losses` lead into each leaf, by the leaf's id."""
    found: dict[int, int] = {}
    waiting = [losses.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        for following, _ in () if node is None else node.next_functions:
            if following is None:
                continue
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                found[id(leaf)] = found.get(id(leaf), 0) + 1
            elif following not in seen:
                seen.add(following)
                waiting.append(following)
    return found
