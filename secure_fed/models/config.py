"""What a model is made of, as frozen objects that Hydra's `model/` groups fill.

Everything here is public: it is written to the run folder and agreed by all sites before the first round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from secure_fed.data.records import ModalitySpec
from secure_fed.errors import ConfigError

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FilterbankConfig(_Frozen):
    """A fixed public filter bank, then one linear layer."""

    name: Literal["filterbank"] = "filterbank"


class SmallCnnConfig(_Frozen):
    """Three strided convolutions with group normalisation; `channels` is the width of the first."""

    name: Literal["small_cnn"] = "small_cnn"
    channels: PositiveInt = 8


class ResNetConfig(_Frozen):
    """A torchvision ResNet with group normalisation. `weights`: a local safetensors file, or None."""

    name: Literal["resnet18", "resnet50"] = "resnet18"
    weights: Path | None = None


class NgramsConfig(_Frozen):
    """Public-vocabulary n-gram counts, then one linear layer."""

    name: Literal["ngrams"] = "ngrams"


class BertConfig(_Frozen):
    """A BERT. `weights`: a local folder (config.json, model.safetensors, vocab.txt), which sets all sizes.

    Without weights the tokens are the public vocabulary's words plus `hash_buckets` hashed ones.
    """

    name: Literal["bert_small"] = "bert_small"
    weights: Path | None = None
    layers: PositiveInt = 2
    hidden: PositiveInt = 128
    heads: PositiveInt = 2
    max_tokens: Annotated[int, Field(ge=3)] = 64
    hash_buckets: PositiveInt = 512

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> BertConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is not a multiple of heads={self.heads}")
        return self


class TabularConfig(_Frozen):
    """A linear encoder, or one with a hidden tanh layer."""

    name: Literal["linear", "mlp"] = "linear"
    hidden: PositiveInt = 32


ImageConfig = Annotated[FilterbankConfig | SmallCnnConfig | ResNetConfig, Field(discriminator="name")]
TextConfig = Annotated[NgramsConfig | BertConfig, Field(discriminator="name")]
EncoderConfig = Annotated[
    FilterbankConfig | SmallCnnConfig | ResNetConfig | NgramsConfig | BertConfig | TabularConfig,
    Field(discriminator="name"),
]
KINDS: dict[type[_Frozen], str] = {
    FilterbankConfig: "image",
    SmallCnnConfig: "image",
    ResNetConfig: "image",
    NgramsConfig: "text",
    BertConfig: "text",
    TabularConfig: "tabular",
}


class MlpTranslatorConfig(_Frozen):
    """One hidden tanh layer from feature to feature."""

    name: Literal["mlp"] = "mlp"
    hidden: PositiveInt = 64
    normalise_output: bool = False


class LinearTranslatorConfig(_Frozen):
    """An affine map from feature to feature."""

    name: Literal["linear"] = "linear"
    normalise_output: bool = False


class TransformerTranslatorConfig(_Frozen):
    """A decoder: the source feature is the query, learnable tokens the memory (FIN: 6, 4, 1024, 256)."""

    name: Literal["transformer"] = "transformer"
    depth: PositiveInt = 2
    heads: PositiveInt = 4
    feed_forward: PositiveInt = 128
    width: PositiveInt = 32
    memory_tokens: PositiveInt = 10
    dropout: Probability = 0.0
    normalise_output: bool = False

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerTranslatorConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        return self


TranslatorConfig = Annotated[
    MlpTranslatorConfig | LinearTranslatorConfig | TransformerTranslatorConfig, Field(discriminator="name")
]


class ModelConfig(_Frozen):
    """The whole model. `encoders` overrides the default of its kind for single modalities, by name."""

    feature_width: PositiveInt = 32
    feature_scale: PositiveFloat = 3.0
    image: ImageConfig = FilterbankConfig()
    text: TextConfig = NgramsConfig()
    tabular: TabularConfig = TabularConfig()
    encoders: dict[str, EncoderConfig] = {}
    translator: TranslatorConfig = MlpTranslatorConfig()

    def encoder_for(
        self, spec: ModalitySpec
    ) -> FilterbankConfig | SmallCnnConfig | ResNetConfig | NgramsConfig | BertConfig | TabularConfig:
        """The encoder of one modality. Raises ConfigError where the override reads another kind of data."""
        defaults = {"image": self.image, "text": self.text, "tabular": self.tabular}
        chosen = self.encoders.get(spec.name, defaults[spec.kind])
        if KINDS[type(chosen)] != spec.kind:
            raise ConfigError(
                f"model.encoders.{spec.name}: {chosen.name!r} reads {KINDS[type(chosen)]} data, but "
                f"{spec.name!r} is {spec.kind}: choose one of the model/{spec.kind} encoders"
            )
        return chosen
