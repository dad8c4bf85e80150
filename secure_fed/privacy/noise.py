"""Where the randomness of privacy comes from: an AES-256-CTR keystream, as normals and Poisson samples.

torch's and numpy's generators are seedable and predictable, and their normals can be told apart in floating
point; nothing that protects a record is drawn from them.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from secure_fed.errors import PrivacyError

_KEY_BYTES = 32
_UNIT = 2.0**-53
_BLOCK = 4096  # normals made at a time: even, and small enough for a processor's second cache


class NoiseSource(ABC):
    """A stream of secret random numbers. Subclasses say where the key comes from.

    Not for sharing between threads. A stream is never copied: two holders of one stream would add the same
    noise, which cancels in their difference.
    """

    rng_class: ClassVar[str]

    @abstractmethod
    def derive(self, label: str) -> NoiseSource:
        """An independent stream for one purpose, say "site03/round7/encoders"."""

    @abstractmethod
    def _stream(self) -> CipherContext:
        """The running keystream."""

    def __reduce__(self) -> NoReturn:
        raise PrivacyError(f"{type(self).__name__} cannot be copied or pickled: derive(label) a stream of its own")

    def normal(self, shape: Sequence[int], std: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """Independent N(0, std^2) of `shape`, computed in float64, returned as `dtype`.

        Each value is (g1 + g2 + g3 + g4) / 2 of four independent Box-Muller normals: the set of reachable
        floating-point values is then too dense to reveal the true value from a noised one. The attack is
        Mironov (CCS 2012, for Laplace) and Jin et al. (arXiv 2112.05307, for Gaussians); the answer is
        Holohan and Braghin, "Secure Random Sampling in Differential Privacy" (arXiv 2107.10138), section 5.1.
        """
        if not (math.isfinite(std) and std >= 0):
            raise PrivacyError(f"Expected std={std} to be finite and >= 0")
        count = math.prod(shape)
        blocks = [self._standard_normals(min(_BLOCK, count + 1 - start)) for start in range(0, count, _BLOCK)]
        values = torch.cat(blocks)[:count] if blocks else torch.zeros(0, dtype=torch.float64)
        return values.mul_(std).reshape(tuple(shape)).to(dtype)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """`count` independent uniforms in [0, 1), multiples of 2^-53."""
        uniforms: npt.NDArray[np.float64] = (self._words(count) >> np.uint64(11)) * np.float64(_UNIT)
        return uniforms

    def poisson_mask(self, count: int, sample_rate: float) -> npt.NDArray[np.bool_]:
        """bool [count]: each record in with probability `sample_rate` (to 2^-53), independently."""
        if not 0.0 <= sample_rate <= 1.0:
            raise PrivacyError(f"Expected 0 <= sample_rate={sample_rate} <= 1")
        return self.uniform(count) < sample_rate

    def seed(self) -> int:
        """63 bits to seed a generator that protects nothing, such as dropout's."""
        return int(self._words(1)[0] >> np.uint64(1))

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._stream().update(bytes(8 * count)), dtype="<u8")

    def _standard_normals(self, count: int) -> Tensor:
        """Box-Muller (1958), four pairs of uniforms for every two normals; float64 [count], count even."""
        half = count // 2
        # (k + 1/2) 2^-53 lies in (0, 1]: the logarithm is finite, and each term reaches 8.6 deviations.
        uniforms = torch.from_numpy((self._words(8 * half) >> np.uint64(11)).astype(np.float64)).add_(0.5)
        radius, angle = uniforms.mul_(_UNIT).reshape(2, 4, half)
        radius = radius.log_().mul_(-2.0).sqrt_()
        angle = angle.mul_(2.0 * math.pi)
        cosines = (torch.cos(angle) * radius).sum(dim=0)
        sines = (torch.sin(angle) * radius).sum(dim=0)
        return torch.cat([cosines, sines]).mul_(0.5)


class OsNoise(NoiseSource):
    """Keyed from the operating system's generator; a fork of the process gets a new key."""

    rng_class: ClassVar[str] = "os_urandom_aes256ctr"

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._keystream = _keystream(os.urandom(_KEY_BYTES))

    def derive(self, label: str) -> OsNoise:
        """A stream with a key of its own; `label` only documents it."""
        del label
        return OsNoise()

    def _stream(self) -> CipherContext:
        if os.getpid() != self._process:
            self._rekey()
        return self._keystream


class ReproducibleNoise(NoiseSource):
    """Keyed from a seed, so that a run can be repeated. NO PRIVACY against anybody who knows the seed.

    Only for runs marked `insecure_reproducible`, which every report then says on top.
    """

    rng_class: ClassVar[str] = "insecure_reproducible"

    def __init__(self, seed: int, label: str = "root") -> None:
        self._key = _hkdf(seed.to_bytes(16, "big", signed=True), label)
        self._keystream = _keystream(self._key)

    def derive(self, label: str) -> ReproducibleNoise:
        """A stream that depends on the seed and the labels on the way to it, not on what was drawn before."""
        child = ReproducibleNoise.__new__(ReproducibleNoise)
        child._key = _hkdf(self._key, label)
        child._keystream = _keystream(child._key)
        return child

    def _stream(self) -> CipherContext:
        return self._keystream


def _hkdf(secret: bytes, label: str) -> bytes:
    info = b"secure_fed noise/" + label.encode()
    return HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(secret)


def _keystream(key: bytes) -> CipherContext:
    # A key is used for one stream only, so the counter may start at zero.
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
