"""What a model is made of, as frozen objects that Hydra's `model/` groups fill.

Everything here is public: it is written to the run folder and agreed by all sites before the first round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from secure_fed.data.records import ModalitySpec
from secure_fed.errors import ConfigError

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Encoder = TypeVar("_Encoder", "ResNetConfig", "BertConfig")


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
    """A torchvision ResNet. `weights`: a local file (.safetensors, .pth, .pt); `weights_sha256`: checked where given.

    `train`: "all" layers, batch norms converted to group norms, or the "head" alone on frozen features. `side`: images
    are resampled to side x side first, None leaves them as they come.
    """

    name: Literal["resnet18", "resnet50"] = "resnet18"
    weights: Path | None = None
    weights_sha256: Sha256 | None = None
    train: Literal["all", "head"] = "all"
    side: Annotated[int, Field(ge=32)] | None = None

    @field_validator("train", mode="before")
    @classmethod
    def _no_adapters(cls, value: object) -> object:
        if value == "adapters":
            raise ValueError("adapters are low-rank changes of BERT's attention: a ResNet takes all or head")
        return value

    @model_validator(mode="after")
    def _weights_to_freeze(self) -> ResNetConfig:
        return _with_weights_to_freeze(self)


class NgramsConfig(_Frozen):
    """Public-vocabulary n-gram counts, then one linear layer."""

    name: Literal["ngrams"] = "ngrams"


class AdaptersConfig(_Frozen):
    """Low-rank adapters: query(x) + alpha / rank * up(down(x)), and value likewise (LoRA, Hu et al. 2022)."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0


class BertConfig(_Frozen):
    """A BERT. `weights`: a local folder (config.json, model.safetensors or pytorch_model.bin, vocab.txt), or its file.

    Weights set all sizes; bert_base takes those of bert-base alone. `weights_sha256`: checked where given. `train`:
    "all" layers, the "head" alone on frozen features, or "adapters" and the head. Without weights the tokens are the
    public vocabulary's words plus `hash_buckets` hashed ones.
    """

    name: Literal["bert_small", "bert_base"] = "bert_small"
    weights: Path | None = None
    weights_sha256: Sha256 | None = None
    train: Literal["all", "head", "adapters"] = "all"
    adapters: AdaptersConfig = AdaptersConfig()
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

    @model_validator(mode="after")
    def _weights_to_freeze(self) -> BertConfig:
        return _with_weights_to_freeze(self)


def _with_weights_to_freeze(config: _Encoder) -> _Encoder:
    if config.train != "all" and config.weights is None:
        raise ValueError(
            f"train={config.train} without weights: a network that nobody trained has nothing to keep; give weights or "
            "train=all"
        )
    if config.weights is None and config.weights_sha256 is not None:
        raise ValueError("weights_sha256 without weights: give the file that it is of")
    return config


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

    def agreed(self) -> dict[str, Any]:
        """What sites agree on, as JSON: weights by their SHA-256, where that is known, and not by where they lie."""
        tree = self.model_dump(mode="json")
        for chosen in (tree["image"], tree["text"], *tree["encoders"].values()):
            if chosen.get("weights_sha256") is not None:
                chosen["weights"] = None
        return tree

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
