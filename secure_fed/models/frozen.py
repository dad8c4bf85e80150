"""A frozen public network: its features are computed once a record, and kept in the process and in a site's home.

It belongs to no component: nothing of it is trained, noised or uploaded, and no model that uses it holds it as a
parameter or buffer. All models of a process share one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secure_fed.models.encoders import INPUT_SCALE, Encoder, RawValues, called, small_linear
from secure_fed.models.prepared import PreparedCache, content_digest

_PREPARED = PreparedCache()
_MOST = 2  # an image network and a text network
_SHARED: OrderedDict[str, FrozenBackbone] = OrderedDict()
_GUARD = Lock()
_REMEMBERED: ContextVar[tuple[Mapping[str, Tensor], dict[str, Tensor]] | None] = ContextVar("features", default=None)


class FrozenBackbone:
    """`network` in evaluation mode behind `pooled`: raw values of one record [1, ...] -> features [1, width].

    Not an nn.Module on purpose: a module that holds it must not find parameters in it, and a copy of the module shares
    it. `name` tells it from every other, the weights' digest included: what is kept is kept by name and content.
    """

    def __init__(
        self,
        network: nn.Module,
        pooled: Callable[[RawValues], Tensor],
        width: int,
        name: str,
        notes: tuple[str, ...],
    ) -> None:
        network.requires_grad_(False).eval()
        self.width = width
        self.notes = notes
        self.parameters = sum(tensor.numel() for tensor in [*network.parameters(), *network.buffers()])
        self._pooled = pooled
        self._name = name

    def features(self, raw: RawValues) -> Tensor:
        """Raw values of n records -> float32 [n, width], each record's with mean 0 and deviation INPUT_SCALE.

        Each record passes the network alone, so that its features are the same bits in any company, and a change of
        one record changes no other's; records that are alike (the blank ones of an absent modality) pass it once.
        """
        rows = [self._row(raw[i : i + 1]) for i in range(len(raw))]
        return torch.cat(rows) if rows else torch.zeros(0, self.width)

    def __deepcopy__(self, _memo: object) -> FrozenBackbone:
        return self

    def _row(self, raw: RawValues) -> Tensor:
        memory = _REMEMBERED.get()
        if memory is None:
            return _PREPARED.of(raw, self._alone, self._name.encode())
        before, asked = memory
        key = f"{self._name}/{content_digest(raw).hex()}"
        found = _PREPARED.of(raw, lambda one: before[key] if key in before else self._alone(one), self._name.encode())
        asked[key] = found
        return found

    def _alone(self, raw: RawValues) -> Tensor:
        with torch.no_grad():
            return F.layer_norm(self._pooled(raw), (self.width,)) * INPUT_SCALE


class FrozenEncoder(Encoder):
    """A linear layer on the features of a public network, which are computed once a record and never change."""

    def __init__(self, backbone: FrozenBackbone, out_features: int, scale: float) -> None:
        super().__init__(out_features, scale)
        self.backbone = backbone
        self.notes, self.public_parameters = backbone.notes, backbone.parameters
        self.linear = small_linear(backbone.width, out_features)

    def prepare(self, raw: RawValues) -> Tensor:
        """Raw values of n records -> the backbone's features float32 [n, width], standardised."""
        return self.backbone.features(raw)

    def embed(self, prepared: Tensor) -> Tensor:
        """float32 [B, width] -> [B, F]."""
        return called(self.linear, prepared)


@contextmanager
def remembered(before: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Within the block, features in `before` are not computed again; yields all that are asked for, as they come.

    Both by backbone and by the content of the record, rows float32 [1, width].
    """
    asked: dict[str, Tensor] = {}
    token = _REMEMBERED.set((before, asked))
    try:
        yield asked
    finally:
        _REMEMBERED.reset(token)


def shared_backbone(name: str, make: Callable[[str], FrozenBackbone]) -> FrozenBackbone:
    """The process's one backbone called `name`; `make(name)` builds it where it is not there yet."""
    with _GUARD:
        if name not in _SHARED:
            _SHARED[name] = make(name)
        _SHARED.move_to_end(name)
        while len(_SHARED) > _MOST:
            _SHARED.popitem(last=False)
        return _SHARED[name]
