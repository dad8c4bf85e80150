"""The model that a federation trains: an encoder per modality, translators between them, and a fusion head.

It knows its parameters by component ("encoder.image", "translator.image_to_text", "fusion"): what a site
owns, uploads and has averaged is always a whole component.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

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
from secure_fed.models.encoders import Encoder, NgramEncoder, TabularEncoder
from secure_fed.models.filterbank import FilterbankEncoder
from secure_fed.models.translators import Translator, build_translator
from secure_fed.models.units import Unit

FUSION = "fusion"


class MultimodalModel(nn.Module):
    """Encoders, translators and a linear fusion head over the features of all modalities in schema order."""

    def __init__(
        self,
        schema: Schema,
        encoders: Mapping[str, Encoder],
        translators: Mapping[tuple[str, str], Translator],
        fusion: nn.Linear,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.encoders = nn.ModuleDict({name: encoders[name] for name in schema.names})
        self.translators = nn.ModuleDict({f"{a}_to_{b}": translators[a, b] for a, b in sorted(translators)})
        if len(self.translators) != len(translators):
            raise ConfigError("two translators have the same name: avoid '_to_' in modality names")
        self.fusion = fusion
        self._components = self._name_components()
        self._sizes = {
            name: sum(self.get_parameter(path).numel() for path in paths) for name, paths in self._components.items()
        }

    def _name_components(self) -> dict[str, tuple[str, ...]]:
        components: dict[str, list[str]] = {}
        for name, _ in self.named_parameters():
            kind, rest = name.split(".", 1)
            if kind in ("encoders", "translators"):
                component = f"{kind.removesuffix('s')}.{rest.split('.', 1)[0]}"
            else:
                component = kind
            components.setdefault(component, []).append(name)
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
        kind, _, name = component.partition(".")
        return self.get_submodule(f"{kind}s.{name}" if name else kind)

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

    def prepare(self, records: Records, unit: Unit = "record") -> Batch:
        """All records as tensors, through each encoder's public, parameter-free `prepare`; grouped by `unit`."""
        inputs = {name: self._encoder(name).prepare(records.values[name]) for name in self.schema.names}
        return Batch.from_records(records, inputs, unit)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Every modality -> feature [B, F]; rows of absent modalities are zero."""
        return {name: self.encode_one(batch, name) for name in self.schema.names}

    def encode_one(self, batch: Batch, modality: str) -> Tensor:
        """The feature [B, F] of one modality; rows where it is absent are zero."""
        encoder, present = self._encoder(modality), batch.presence[modality]
        if not present.any():
            return torch.zeros(len(batch), encoder.out_features)
        feature: Tensor = encoder(batch.inputs[modality])
        return feature * present.unsqueeze(1)

    def translate(self, source: str, target: str, feature: Tensor) -> Tensor:
        """The target's feature [B, F], imputed from the source's. Raises ConfigError without such a translator."""
        key = f"{source}_to_{target}"
        if key not in self.translators:
            known = ", ".join(self.translators) or "none"
            raise ConfigError(f"no translator {key!r}: this model has {known}")
        translated: Tensor = self.translators[key](feature)
        return translated

    def classify(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features of all modalities, [B, F] each -> logits [B, L]."""
        logits: Tensor = self.fusion(torch.cat([features[name] for name in self.schema.names], dim=1))
        return logits

    def _encoder(self, modality: str) -> Encoder:
        self.schema.modality(modality)
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)  # noqa: S101  # narrows ModuleDict's type
        return encoder


def build_model(schema: Schema, config: ModelConfig, pairs: Iterable[tuple[str, str]], seed: int) -> MultimodalModel:
    """The model of `schema` with a translator for each (source, target) of `pairs`.

    A component's initial weights depend on `seed` and its own name only: neither on the other components nor
    on torch's global generator, which is left as it was. Raises ConfigError for an unknown or repeated modality.
    """
    unknown = sorted(set(config.encoders) - set(schema.names))
    if unknown:
        raise ConfigError(f"model.encoders.{unknown[0]}: this data set has {', '.join(schema.names)}")
    width, scale = config.feature_width, config.feature_scale
    encoders = {}
    for spec in schema.modalities:
        with _seeded(seed, f"encoder.{spec.name}"):
            encoders[spec.name] = _build_encoder(spec, config)
    translators = {}
    for source, target in pairs:
        schema.modality(source), schema.modality(target)
        if source == target or (source, target) in translators:
            raise ConfigError(f"translator {source!r} to {target!r}: expected two modalities, and each pair once")
        with _seeded(seed, f"translator.{source}_to_{target}"):
            translators[source, target] = build_translator(config.translator, width, scale)
    with _seeded(seed, FUSION):
        fusion = nn.Linear(width * len(schema.modalities), len(schema.labels))
    nn.init.zeros_(fusion.weight)
    nn.init.zeros_(fusion.bias)
    return MultimodalModel(schema, encoders, translators, fusion)


def _build_encoder(spec: ModalitySpec, config: ModelConfig) -> Encoder:
    chosen, width, scale = config.encoder_for(spec), config.feature_width, config.feature_scale
    if isinstance(chosen, FilterbankConfig):
        return FilterbankEncoder(width, scale)
    if isinstance(chosen, SmallCnnConfig | ResNetConfig):
        # torchvision and transformers take seconds to import: only those wait who use them.
        from secure_fed.models.convolutional import ResNetEncoder, SmallCnnEncoder

        if isinstance(chosen, SmallCnnConfig):
            return SmallCnnEncoder(chosen.channels, width, scale)
        return ResNetEncoder(chosen.name, chosen.weights, width, scale)
    if isinstance(chosen, NgramsConfig):
        return NgramEncoder(width, scale)
    if isinstance(chosen, BertConfig):
        from secure_fed.models.bert import BertEncoder

        return BertEncoder(chosen, width, scale)
    return TabularEncoder(spec.shape[0], width, scale, chosen.hidden if chosen.name == "mlp" else None)


@contextmanager
def _seeded(seed: int, component: str) -> Iterator[None]:
    """torch's global generator, seeded for one component and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        digest = hashlib.sha256(f"secure_fed initial weights/{seed}/{component}".encode()).digest()
        # The CPU's generator alone: torch.manual_seed also queues itself, with a stack trace, for every accelerator.
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield
