"""How a missing modality is filled in, and which phases train what: one file a method.

`build` turns a configuration into a method; everything else asks the method's interface.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from secure_fed.methods.base import Method
from secure_fed.methods.fin import Fin, FinConfig
from secure_fed.methods.modality_dropout import ModalityDropout, ModalityDropoutConfig
from secure_fed.methods.ridge import Ridge, RidgeConfig
from secure_fed.methods.zero_fill import ZeroFill, ZeroFillConfig

AnyMethodConfig = Annotated[
    FinConfig | ZeroFillConfig | ModalityDropoutConfig | RidgeConfig, Field(discriminator="name")
]


def build(config: FinConfig | ZeroFillConfig | ModalityDropoutConfig | RidgeConfig) -> Method:
    """The method that a configuration names."""
    match config:
        case FinConfig():
            return Fin(config)
        case RidgeConfig():
            return Ridge(config)
        case ModalityDropoutConfig():
            return ModalityDropout(config)
        case ZeroFillConfig():
            return ZeroFill(config)


__all__ = ["AnyMethodConfig", "Method", "build"]
