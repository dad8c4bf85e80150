"""Every shipped method in a small configuration, with the model and the public context that its losses need.

FIN's variants and the generative baseline need options of their own and have their own examples.
"""

from __future__ import annotations

from collections.abc import Sequence

from secure_fed.data.records import Schema
from secure_fed.federation.public_set import context_from
from secure_fed.methods import Method, build
from secure_fed.methods.base import Pair, PublicContext
from secure_fed.methods.car_mfl import CarMflConfig
from secure_fed.methods.complete import CompleteConfig
from secure_fed.methods.config import MethodConfig, PhaseConfig
from secure_fed.methods.drop import DropConfig
from secure_fed.methods.fin import FinConfig
from secure_fed.methods.fin_uncertainty import FinUncertaintyConfig
from secure_fed.methods.mean_fill import MeanFillConfig
from secure_fed.methods.modality_dropout import ModalityDropoutConfig
from secure_fed.methods.ridge import RidgeConfig
from secure_fed.methods.uniform_fill import UniformFillConfig
from secure_fed.methods.vae import VaeConfig
from secure_fed.methods.zero_fill import ZeroFillConfig
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import MultimodalModel, build_model
from secure_fed.privacy.made_up import made_up_public_set

STEPS = PhaseConfig(steps=2, learning_rate=1.0, unclipped_steps=3, unclipped_learning_rate=0.5)
FIN = FinConfig(name="fin", schedule="last", translator_share=1 / 6, classify=STEPS, translate=STEPS)
FIN_UNCERTAINTY = FinUncertaintyConfig(
    name="fin_uncertainty", schedule="last", translator_share=1 / 6, classify=STEPS, translate=STEPS
)
RIDGE = RidgeConfig(name="ridge", penalty=1e-4, noise_penalty=2.0, bound=19.0, classify=STEPS)
VAE = VaeConfig(
    name="vae", schedule="last", vae_share=0.2, latent=3, hidden=5, beta=0.1, classify=STEPS, autoencode=STEPS
)
MEAN_FILL = MeanFillConfig(name="mean_fill", releases=2, noise=4.0, classify=STEPS)
CAR_MFL = CarMflConfig(name="car_mfl", neighbours=3, classify=STEPS)
UNIFORM_FILL = UniformFillConfig(name="uniform_fill", classify=STEPS)
SHIPPED: dict[str, MethodConfig] = {
    config.name: config
    for config in (
        FIN,
        FIN_UNCERTAINTY,
        RIDGE,
        ZeroFillConfig(name="zero_fill", classify=STEPS),
        ModalityDropoutConfig(name="modality_dropout", probability=0.5, classify=STEPS),
        UNIFORM_FILL,
        MEAN_FILL,
        VAE,
        CAR_MFL,
        DropConfig(name="drop", classify=STEPS),
        CompleteConfig(name="complete", classify=STEPS),
    )
}


def model_of(
    method: Method, schema: Schema, pairs: Sequence[Pair], config: ModelConfig, seed: int = 3
) -> MultimodalModel:
    """The model with the method's parts."""
    return build_model(schema, config, method.parts(schema, pairs, config), seed)


def context_for(method: Method, model: MultimodalModel) -> PublicContext | None:
    """The method's context of a made-up public set; None where it needs none."""
    return context_from(method, model, made_up_public_set(model)) if method.needs_public_set else None


def built(name: str) -> Method:
    """The method called `name` in its small configuration."""
    return build(SHIPPED[name])
