"""A run's public set under the digest that its configuration names, and what the method makes of it in a round.

Coordinator and sites hold the same bytes and the same model, so each computes the context; it never travels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from secure_fed.data.public_set import decode_public, encode_public
from secure_fed.data.records import Records, Schema
from secure_fed.errors import ConfigError, DataError, SecAggError
from secure_fed.federation.facts import Federation
from secure_fed.federation.wire import Array, hash_arrays
from secure_fed.methods.base import Method, PublicContext
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.made_up import made_up_public_set

MISMATCH = "public_set_mismatch"
"""What was sent is not the set that the request itself names: a coordinator that signed both lies or is broken."""
OTHER = "other_public_set"
"""The request names another set than this run's configuration: it is another run's, and proves nothing."""
BAD = "bad_public_set"
"""The set that the configuration names holds no records of its schema."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class PublicSet:
    """Public records, as arrays too, and their digest: SHA-256 (hex) of the arrays' names, types, shapes and bytes."""

    digest: str
    arrays: Mapping[str, Array]
    records: Records

    @classmethod
    def of(cls, records: Records) -> PublicSet:
        """The set of these records, whose ids and groups it leaves behind.

        Raises:
            DataError: where there is none, or one lacks a modality.
        """
        arrays = encode_public(records)
        return cls(hash_arrays(arrays), arrays, decode_public(records.schema, arrays))

    @classmethod
    def received(cls, schema: Schema, digest: str, arrays: Mapping[str, Array]) -> PublicSet:
        """The set called `digest`, from arrays that a peer sent or a disk kept.

        Raises:
            SecAggError: public_set_mismatch where they are another's, bad_public_set where they are no records.
        """
        found = hash_arrays(arrays)
        if found != digest:
            raise SecAggError(MISMATCH, f"the arrays hash to {found}, the configuration names {digest}")
        try:
            return cls(digest, arrays, decode_public(schema, arrays))
        except DataError as error:
            raise SecAggError(BAD, str(error)) from error


def digest_needed(federation: Federation) -> str | None:
    """Digest of the set that the run's method works with, None where it needs none.

    Raises:
        ConfigError: where it needs one and the configuration does not say which.
    """
    if not federation.method.needs_public_set:
        return None
    digest = federation.config.federation.public_set
    if digest is None:
        raise ConfigError(
            f"method={federation.method.name} needs a public set and federation.public_set names none: who begins the "
            "run writes its SHA-256 there, so that every owner knows what he agrees to"
        )
    return digest


class _Latest(Generic[_Value]):
    """The values made last, by key: in one process all sites of a simulation stand before the same round."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[object, ...], _Value] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, key: tuple[object, ...]) -> _Value | None:
        with self._guard:
            return self._kept.get(key)

    def put(self, key: tuple[object, ...], value: _Value) -> _Value:
        with self._guard:
            self._kept[key] = value
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value


_BATCHES: _Latest[Batch] = _Latest(1)
_CONTEXTS: _Latest[PublicContext] = _Latest(2)  # of the round's model, and of the one after it
_MADE_UP: _Latest[PublicContext] = _Latest(1)


def context_of(federation: Federation, model: MultimodalModel, public: PublicSet | None) -> PublicContext | None:
    """What the run's method makes of the public set with this model; None where it needs none.

    Computed once in a process for each configuration (which names the set) and model.
    """
    if public is None:
        return None
    key = (federation.digest(), public.digest, model.digest())
    context = _CONTEXTS.get(key)
    if context is not None:
        return context
    made = context_from(federation.method, model, _prepared(federation, model, public))
    return None if made is None else _CONTEXTS.put(key, made)


def made_up_context(federation: Federation) -> PublicContext | None:
    """What the run's method makes of a set that belongs to nobody, for a site's preflight; None where it needs none."""
    if not federation.method.needs_public_set:
        return None
    key = (federation.digest(), "made up")
    context = _MADE_UP.get(key)
    if context is not None:
        return context
    made = context_from(federation.method, federation.model, made_up_public_set(federation.model))
    return None if made is None else _MADE_UP.put(key, made)


def context_from(method: Method, model: MultimodalModel, public: Batch) -> PublicContext | None:
    """The method's context, as everybody computes it: the model in evaluation, and no gradient through it.

    With one, a record's gradient would run through the public records' features as well.
    """
    trained = model.training
    model.eval()
    try:
        with torch.no_grad():
            return method.public_context(model, public)
    finally:
        model.train(trained)


def _prepared(federation: Federation, model: MultimodalModel, public: PublicSet) -> Batch:
    key = (federation.digest(), public.digest)
    batch = _BATCHES.get(key)
    return batch if batch is not None else _BATCHES.put(key, model.prepare(public.records))
