"""How a missing modality is filled in, and which phases train what: one file a method.

`build` turns a configuration into a method; everything else asks the method's interface.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from secure_fed.methods.base import Method
from secure_fed.methods.car_mfl import CarMfl, CarMflConfig
from secure_fed.methods.complete import Complete, CompleteConfig
from secure_fed.methods.drop import Drop, DropConfig
from secure_fed.methods.fin import Fin, FinConfig
from secure_fed.methods.fin_uncertainty import FinUncertainty, FinUncertaintyConfig
from secure_fed.methods.generative import Generative, GenerativeConfig
from secure_fed.methods.mean_fill import MeanFill, MeanFillConfig
from secure_fed.methods.modality_dropout import ModalityDropout, ModalityDropoutConfig
from secure_fed.methods.ridge import Ridge, RidgeConfig
from secure_fed.methods.uniform_fill import UniformFill, UniformFillConfig
from secure_fed.methods.vae import Vae, VaeConfig
from secure_fed.methods.zero_fill import ZeroFill, ZeroFillConfig

_MethodConfig = (
    FinConfig
    | FinUncertaintyConfig
    | ZeroFillConfig
    | UniformFillConfig
    | MeanFillConfig
    | ModalityDropoutConfig
    | RidgeConfig
    | VaeConfig
    | CarMflConfig
    | GenerativeConfig
    | DropConfig
    | CompleteConfig
)
AnyMethodConfig = Annotated[_MethodConfig, Field(discriminator="name")]


def build(config: _MethodConfig) -> Method:
    """The method that a configuration names."""
    match config:
        case FinConfig():
            return Fin(config)
        case FinUncertaintyConfig():
            return FinUncertainty(config)
        case GenerativeConfig():
            return Generative(config)
        case RidgeConfig():
            return Ridge(config)
        case VaeConfig():
            return Vae(config)
        case CarMflConfig():
            return CarMfl(config)
        case MeanFillConfig():
            return MeanFill(config)
        case UniformFillConfig():
            return UniformFill(config)
        case ModalityDropoutConfig():
            return ModalityDropout(config)
        case DropConfig():
            return Drop(config)
        case CompleteConfig():
            return Complete(config)
        case ZeroFillConfig():
            return ZeroFill(config)


__all__ = ["AnyMethodConfig", "Method", "build"]
