"""What every back end of clipped gradients offers, and how it cleans up the model behind it.

A back end is told a batch, then asked for the clipped sum over the batch's units; nothing else leaves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from opacus import GradSampleModule
from torch import Tensor, nn

from secure_fed.models.batch import Batch

# What Opacus, DPOptimizer and our hooks leave on layers and parameters.
_ON_LAYERS = ("activations", "max_batch_len", "factors")
_OF_A_BATCH = ("_current_grad_sample", "_norm_sample")
_ON_PARAMETERS = ("grad_sample", "summed_grad", "_forward_counter")


class RecordGradients(ABC):
    """Gradients of the last batch, by unit. Made by `record_gradients`, which also closes it."""

    def __init__(self, wrapped: GradSampleModule, trained: list[nn.Parameter]) -> None:
        self.trained = trained
        self._wrapped = wrapped
        self._layers = [m for m in wrapped.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]

    @abstractmethod
    def backward(self, batch: Batch) -> None:
        """Take the gradients of `batch` (B >= 1), which replace those of the batch before.

        A parameter that the loss does not reach has none, which counts as zero. Raises PrivacyError where the
        loss uses a layer in a way whose gradients cannot be told apart by record.
        """

    @abstractmethod
    def clipped_sums(self, max_grad_norm: float) -> list[Tensor]:
        """For each trained parameter: sum over units of g * min(1, C / |g|), |g| over all of them together.

        g is the sum of the gradients of a unit's records. A unit with a record whose gradient is not finite, or
        whose norm overflows, adds zero.
        """

    def clear(self) -> None:
        """Forget what the hooks hold of an earlier batch, also where its backward pass never came."""
        for layer in self._layers:
            _delete(layer, _ON_LAYERS)
        for parameter in self.trained:
            _delete(parameter, _OF_A_BATCH)
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus' own attributes
            parameter._forward_counter = 0  # type: ignore[attr-defined]

    def close(self) -> None:
        """Take every trace of the hooks off the model."""
        self._wrapped.remove_hooks()
        self.clear()
        for parameter in self.trained:
            _delete(parameter, _ON_PARAMETERS)


def _delete(owner: object, attributes: tuple[str, ...]) -> None:
    for attribute in attributes:
        if hasattr(owner, attribute):
            delattr(owner, attribute)
