"""The model that a federation trains: an encoder per modality, a fusion head, and what a method needs beside them.

It knows its parameters by component ("encoder.image", "translator.image_to_text", "fusion"): what a site
owns, uploads and has averaged is always a whole component.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from secure_fed.data.images import PART, LazyImages
from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.errors import ConfigError
from secure_fed.models.batch import Batch
from secure_fed.models.config import (
    BertConfig,
    FilterbankConfig,
    ModelConfig,
    NgramsConfig,
    ResNetConfig,
    SmallCnnConfig,
)
from secure_fed.models.digest import parameters_digest
from secure_fed.models.encoders import Encoder, NgramEncoder, RawValues, TabularEncoder
from secure_fed.models.filterbank import FilterbankEncoder
from secure_fed.models.lazy_input import LazyInput
from secure_fed.models.translators import Translator
from secure_fed.models.units import Unit

FUSION = "fusion"

PartMaker = Callable[[], nn.Module]
_Part = TypeVar("_Part", bound=nn.Module)


def component_of(path: str) -> str:
    """The component of a parameter by its path in the model: `parts.translator.image_to_text.last.bias`, say."""
    match path.split("."):
        case ["encoders", modality, *_]:
            return f"encoder.{modality}"
        case ["parts", kind, rest, *_]:
            return f"{kind}.{rest}"
        case [component, *_]:
            return component
    raise ConfigError("a parameter needs a path")


@runtime_checkable
class Preparing(Protocol):
    """A part that needs a prepared view of a modality of its own, beside the encoder's (tokens, say)."""

    prepares: str

    def prepare(self, raw: RawValues) -> Tensor:
        """The public, parameter-free part: raw values of n records -> tensor [n, ...]."""


class MultimodalModel(nn.Module):
    """Encoders, a linear fusion head over the features of all modalities in schema order, and a method's parts.

    A part is a whole component, named `kind.modality` or `kind.source_to_target` (translators, generators ...).
    """

    def __init__(
        self,
        schema: Schema,
        encoders: Mapping[str, Encoder],
        parts: Mapping[str, nn.Module],
        fusion: nn.Linear,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.encoders = nn.ModuleDict({name: encoders[name] for name in schema.names})
        self.parts = nn.ModuleDict()
        for component in sorted(parts):
            kind, _, rest = component.partition(".")
            if not rest or kind == "encoder":
                raise ConfigError(f"part {component!r}: expected a name like translator.image_to_text")
            if kind not in self.parts:
                self.parts[kind] = nn.ModuleDict()
            of_kind = self.parts[kind]
            assert isinstance(of_kind, nn.ModuleDict)  # noqa: S101  # narrows ModuleDict's type
            of_kind[rest] = parts[component]
        self.fusion = fusion
        self._components = self._name_components()
        self._sizes = {
            name: sum(self.get_parameter(path).numel() for path in paths) for name, paths in self._components.items()
        }

    def _name_components(self) -> dict[str, tuple[str, ...]]:
        components: dict[str, list[str]] = {}
        for name, _ in self.named_parameters():
            components.setdefault(component_of(name), []).append(name)
        named = [name for names in components.values() for name in names]
        if len(set(named)) != len(named) or len(named) != len({id(p) for p in self.parameters()}):
            raise ConfigError("a parameter belongs to no component or to two: give each module its own parameters")
        return {component: tuple(names) for component, names in components.items()}

    def components(self) -> dict[str, tuple[str, ...]]:
        """Component -> its parameter names, in the order in which the flat vector holds them."""
        return dict(self._components)

    def component_sizes(self) -> dict[str, int]:
        """Component -> how many numbers it has."""
        return dict(self._sizes)

    def component_parameters(self, component: str) -> list[nn.Parameter]:
        """The parameters of `component`, in order. Raises ConfigError, naming the known components."""
        if component not in self._components:
            raise ConfigError(f"unknown component {component!r}: this model has {', '.join(self._components)}")
        return [self.get_parameter(name) for name in self._components[component]]

    def component_module(self, component: str) -> nn.Module:
        """The module that `component` names. Raises ConfigError for an unknown one."""
        self.component_parameters(component)
        kind, _, rest = component.partition(".")
        if kind == "encoder":
            return self.encoders[rest]
        return self.part(component) if rest else self.get_submodule(kind)

    @overload
    def part(self, component: str) -> nn.Module: ...

    @overload
    def part(self, component: str, kind_of: type[_Part]) -> _Part: ...

    def part(self, component: str, kind_of: type[nn.Module] = nn.Module) -> nn.Module:
        """The method's part called `component`, which is a `kind_of`. Raises ConfigError, naming the known ones."""
        kind, _, rest = component.partition(".")
        of_kind = self.parts[kind] if kind in self.parts else nn.ModuleDict()
        assert isinstance(of_kind, nn.ModuleDict)  # noqa: S101  # narrows ModuleDict's type
        if rest not in of_kind:
            known = ", ".join(self.part_names()) or "none"
            raise ConfigError(f"no part {component!r}: this model has {known}")
        found = of_kind[rest]
        if not isinstance(found, kind_of):
            raise ConfigError(f"part {component!r} is a {type(found).__name__}, expected a {kind_of.__name__}")
        return found

    def part_names(self) -> tuple[str, ...]:
        """Names of all parts."""
        return tuple(f"{kind}.{rest}" for kind, of_kind in self.parts.items() for rest, _ in of_kind.named_children())

    def get_component(self, component: str) -> npt.NDArray[np.float32]:
        """A copy of the component as one flat float32 vector [P]."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.component_parameters(component)])
        return flat.to(torch.float32).numpy().copy()

    def set_component(self, component: str, flat: npt.NDArray[np.float32]) -> None:
        """Overwrite the component from a flat vector [P]. Raises ConfigError where the length is another."""
        parameters = self.component_parameters(component)
        size = sum(p.numel() for p in parameters)
        if flat.shape != (size,):
            raise ConfigError(f"component {component!r} has {size} numbers, got an array of shape {flat.shape}")
        source = torch.from_numpy(np.ascontiguousarray(flat, dtype=np.float32))
        with torch.no_grad():
            for parameter, part in zip(parameters, torch.split(source, [p.numel() for p in parameters]), strict=True):
                parameter.copy_(part.view_as(parameter))

    def digest(self) -> bytes:
        """The `parameters_digest` of all components, 32 bytes."""
        return parameters_digest({name: self.get_component(name) for name in self._components})

    def notes(self) -> dict[str, tuple[str, ...]]:
        """Component -> what was made of the public weights that it began from, or stands on, in sentences."""
        return {f"encoder.{name}": e.notes for name in self.schema.names if (e := self.encoder(name)).notes}

    def public_parameters(self) -> dict[str, int]:
        """Component -> how many public numbers it stands on that are not its own: never trained, never uploaded."""
        counts = {f"encoder.{name}": self.encoder(name).public_parameters for name in self.schema.names}
        return {name: count for name, count in counts.items() if count}

    def prepare(self, records: Records, unit: Unit = "record") -> Batch:
        """All records as tensors, through each encoder's public, parameter-free `prepare`; grouped by `unit`.

        Parts with a `prepare` of their own give the batch's `extras`.
        """
        inputs = {name: _prepared(self.encoder(name), records.values[name]) for name in self.schema.names}
        extras: dict[str, dict[str, Tensor]] = {}
        for name in self.part_names():
            part = self.part(name)
            if isinstance(part, Preparing):
                extras.setdefault(part.prepares, {})[name] = part.prepare(records.values[part.prepares])
        return Batch.from_records(records, inputs, unit, extras)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Every modality -> feature [B, F]; rows of absent modalities are zero."""
        return {name: self.encode_one(batch, name) for name in self.schema.names}

    def encode_one(self, batch: Batch, modality: str) -> Tensor:
        """The feature [B, F] of one modality; rows where it is absent are zero."""
        encoder, present = self.encoder(modality), batch.presence[modality]
        if not present.any():
            return torch.zeros(len(batch), encoder.out_features)
        if isinstance(batch.inputs[modality], LazyInput) and len(batch) > PART and not torch.is_grad_enabled():
            rows = torch.split(torch.arange(len(batch)), PART)
            return torch.cat([self.encode_one(batch.select(some), modality) for some in rows])
        feature: Tensor = encoder(batch.input(modality))
        return feature * present.unsqueeze(1)

    def translate(self, source: str, target: str, feature: Tensor) -> Tensor:
        """The target's feature [B, F], imputed from the source's. Raises ConfigError without such a translator."""
        translated: Tensor = self.translator(source, target)(feature)
        return translated

    def translator(self, source: str, target: str) -> Translator:
        """The translator of a pair. Raises ConfigError, naming the parts that there are."""
        return self.part(f"translator.{source}_to_{target}", Translator)

    def classify(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features of all modalities, [B, F] each -> logits [B, L]."""
        logits: Tensor = self.fusion(torch.cat([features[name] for name in self.schema.names], dim=1))
        return logits

    def encoder(self, modality: str) -> Encoder:
        """The encoder of one modality. Raises ConfigError, naming the known ones."""
        self.schema.modality(modality)
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)  # noqa: S101  # narrows ModuleDict's type
        return encoder


def build_model(schema: Schema, config: ModelConfig, parts: Mapping[str, PartMaker], seed: int) -> MultimodalModel:
    """The model of `schema` with a method's `parts` (translators.translator_parts makes those of pairs).

    A component's initial weights depend on `seed` and its own name only: neither on the other components nor
    on torch's global generator, which is left as it was. Raises ConfigError for an unknown modality.
    """
    unknown = sorted(set(config.encoders) - set(schema.names))
    if unknown:
        raise ConfigError(f"model.encoders.{unknown[0]}: this data set has {', '.join(schema.names)}")
    width = config.feature_width
    encoders = {}
    for spec in schema.modalities:
        with _seeded(seed, f"encoder.{spec.name}"):
            encoders[spec.name] = _build_encoder(spec, config)
    made = {}
    for component, make in parts.items():
        for modality in component.partition(".")[2].split("_to_"):
            schema.modality(modality)
        with _seeded(seed, component):
            made[component] = make()
    with _seeded(seed, FUSION):
        fusion = nn.Linear(width * len(schema.modalities), len(schema.labels))
    nn.init.zeros_(fusion.weight)
    nn.init.zeros_(fusion.bias)
    return MultimodalModel(schema, encoders, made, fusion)


def _build_encoder(spec: ModalitySpec, config: ModelConfig) -> Encoder:
    chosen, width, scale = config.encoder_for(spec), config.feature_width, config.feature_scale
    if isinstance(chosen, FilterbankConfig):
        return FilterbankEncoder(width, scale)
    if isinstance(chosen, SmallCnnConfig | ResNetConfig):
        # torchvision and transformers take seconds to import: only those wait who use them.
        from secure_fed.models.convolutional import SmallCnnEncoder, resnet_encoder

        if isinstance(chosen, SmallCnnConfig):
            return SmallCnnEncoder(chosen.channels, width, scale)
        return resnet_encoder(chosen, width, scale)
    if isinstance(chosen, NgramsConfig):
        return NgramEncoder(width, scale)
    if isinstance(chosen, BertConfig):
        from secure_fed.models.bert import bert_encoder

        return bert_encoder(chosen, width, scale)
    return TabularEncoder(spec.shape[0], width, scale, chosen.hidden if chosen.name == "mlp" else None)


def _prepared(encoder: Encoder, raw: RawValues) -> Tensor | LazyInput:
    """What the encoder prepares of raw values; pixels of images in files only when somebody looks at them."""
    if isinstance(raw, LazyImages) and encoder.keeps_pixels:
        return LazyInput(raw, encoder.prepare)
    return encoder.prepare(raw)


@contextmanager
def _seeded(seed: int, component: str) -> Iterator[None]:
    """torch's global generator, seeded for one component and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        digest = hashlib.sha256(f"secure_fed initial weights/{seed}/{component}".encode()).digest()
        # The CPU's generator alone: torch.manual_seed also queues itself, with a stack trace, for every accelerator.
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield
