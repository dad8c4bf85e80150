"""Where the randomness of privacy comes from: an AES-256-CTR keystream, as normals and Poisson samples.

torch's and numpy's generators are seedable and predictable, and their normals can be told apart in floating
point; nothing that protects a record is drawn from them.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
_BLOCK = 8192  # normals made at a time: even, and small enough for a processor's second cache
_GRID_BITS = 16  # a released value is a multiple of this many bits below the noise's deviation
_MT_WORDS = 624  # of 32 bits, in 8 bytes each: the Mersenne twister's state in torch's blob, and where it begins
_MT_PLACE = 24
_ONE = np.uint64(0x3FF0000000000000)  # the bits of 1.0: with 52 bits of fraction behind them, a float64 in [1, 2)


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

        Each value is (g1 + g2 + g3 + g4) / 2 of four independent Box-Muller normals, so that no search over the
        sampler's uniforms finds out which values it can reach: Holohan and Braghin, "Secure Random Sampling in
        Differential Privacy" (arXiv 2107.10138), section 5.1. What protects a record is drawn by `noised`.
        """
        if not (math.isfinite(std) and std >= 0):
            raise PrivacyError(f"Expected std={std} to be finite and >= 0")
        count = math.prod(shape)
        values = np.empty(count + count % 2)
        for start in range(0, count, _BLOCK):
            self._fill_with_normals(values[start : start + _BLOCK])
        values *= std
        return torch.from_numpy(values[:count]).reshape(tuple(shape)).to(dtype)

    def noised(self, total: Tensor, std: float) -> Tensor:
        """`total` + N(0, std^2), float64 of its shape, rounded to multiples of `grid(std)`.

        The grid is public and the same whatever `total` is, and each of its cells holds about 2^36 values that
        the float64 sum can take: no released value is impossible for one data set and possible for another. It
        is the answer to Mironov (CCS 2012) and Jin et al. (arXiv 2112.05307); docs/sharp_edges.md has its limits.
        """
        step = grid(std)
        return self.normal(total.shape, std, dtype=torch.float64).add_(total).div_(step).round_().mul_(step)

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
        """63 bits to seed a generator that protects nothing."""
        return int(self._words(1)[0] >> np.uint64(1))

    def random_words(self, count: int) -> npt.NDArray[np.uint32]:
        """`count` independent words of 32 random bits."""
        return np.frombuffer(self._stream().update(bytes(4 * count)), dtype="<u4")

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._stream().update(bytes(8 * count)), dtype="<u8")

    def _fill_with_normals(self, values: npt.NDArray[np.float64]) -> None:
        """Box-Muller (1958), four pairs of uniforms for every two normals; `values` [an even number]."""
        half = len(values) // 2
        bits = self._words(8 * half) >> np.uint64(12)
        # (2k + 1) 2^-53 with k of 52 bits: the logarithm is finite, and each term reaches 8.5 deviations.
        uniforms = np.bitwise_or(bits, _ONE, out=bits).view(np.float64)
        uniforms -= 1.0 - _UNIT
        radius, angle = uniforms.reshape(2, 4, half)
        np.sqrt(np.multiply(np.log(radius, out=radius), -0.5, out=radius), out=radius)  # halved: 0.5 * sqrt(-2 log)
        angle *= 2.0 * math.pi
        turned = torch.from_numpy(angle)  # torch's sine and cosine take half the time of numpy's
        for part, wave in ((values[:half], torch.cos(turned).numpy()), (values[half:], torch.sin(turned).numpy())):
            np.add.reduce(np.multiply(wave, radius, out=wave), axis=0, out=part)


def set_torch_generator(noise: NoiseSource) -> None:
    """Set the state of torch's global generator, all 19,968 bits of it, from `noise`: what losses and layers draw from.

    A record's draws follow from its place in the batch, so a record more or less changes those of all behind it, which
    costs nothing only while nobody can know them. `manual_seed` keeps 32 bits of its seed: all of these can be tried.
    Raises PrivacyError where this version of torch lays its state out otherwise.
    """
    seed = noise.seed()
    torch.default_generator.manual_seed(seed)
    state = torch.default_generator.get_state().numpy()
    words = state[_MT_PLACE : _MT_PLACE + 8 * _MT_WORDS].view(np.uint64)
    if len(words) != _MT_WORDS or int(words[0]) != seed % 2**32:
        raise PrivacyError(
            f"torch {torch.__version__} keeps the state of its generator elsewhere than expected: dropout and other "
            "draws would hang on 32 bits; use a version that is tested"
        )
    words[:] = noise.derive("torch").random_words(_MT_WORDS)
    torch.default_generator.set_state(torch.from_numpy(state))


def grid(std: float) -> float:
    """The step of released values under noise of deviation `std`: the power of two at 2^-16 of it, rounded down.

    Rounding comes after the noise, so it costs no privacy; its error is below 1e-5 of the deviation.
    Raises PrivacyError where `std` is not finite and positive.
    """
    if not (math.isfinite(std) and std > 0):
        raise PrivacyError(f"Expected std={std} to be finite and > 0")
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - _GRID_BITS)


def refuse_shared_streams(streams: Mapping[str, NoiseSource]) -> None:
    """Raise PrivacyError where two of `streams` are one, or draw the same noise.

    Equal noise at two sites, or in two rounds, cancels in the difference of what they release. Draws two normals
    of each stream; the global generators of torch and numpy are put back after each, so that streams which draw
    from those are found out.
    """
    names: dict[tuple[float, ...], str] = {}
    objects: dict[int, str] = {}
    for name, stream in streams.items():
        twin = objects.setdefault(id(stream), name)
        if twin == name:
            twin = names.setdefault(_drawn_from_one_state(stream), name)
        if twin != name:
            raise PrivacyError(
                f"the noise of {twin!r} and of {name!r} is the same stream: it would cancel in their difference; "
                "give each its own OsNoise(), and seed none of them"
            )


def _drawn_from_one_state(stream: NoiseSource) -> tuple[float, ...]:
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            return tuple(stream.normal((2,), 1.0, dtype=torch.float64).tolist())
    finally:
        np.random.set_state(state)


class OsNoise(NoiseSource):
    """Keyed from the operating system's generator; a fork of the process gets a new key."""

    rng_class: ClassVar[str] = "os_urandom_aes256ctr"

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._process = _process()
        self._keystream = _keystream(os.urandom(_KEY_BYTES))

    def derive(self, label: str) -> OsNoise:
        """A stream with a key of its own; `label` only documents it."""
        del label
        return OsNoise()

    def _stream(self) -> CipherContext:
        if _process() != self._process:
            self._rekey()
        return self._keystream


class _Forks:
    """How many forks lie between this process and the one that imported the module."""

    count = 0

    @classmethod
    def add(cls) -> None:
        cls.count += 1


os.register_at_fork(after_in_child=_Forks.add)


def _process() -> tuple[int, int]:
    # The number alone could come again in a grandchild, the count alone misses forks that Python does not see.
    return os.getpid(), _Forks.count


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
