"""What the server receives over a whole round: no update can be read or correlated out of it.

Statistical levels: every test fails on an honest build with probability below 1e-9 a comparison.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from secagg_federation import MODEL, Federation, make_context, make_federation

from secure_fed.errors import SecAggError
from secure_fed.secagg import Code, Stage, quantise
from secure_fed.secagg.messages import Masked
from secure_fed.secagg.packing import pack, unpack

SIGMAS = 6.5  # two-sided normal tail beyond it: 8e-11
SIZE = 20_000
DITHER = bytes(range(32))


def federation_with_updates(members: int = 5) -> tuple[Federation, dict[str, np.ndarray]]:
    """Everybody trains towards a common direction plus its own, as real updates do."""
    context = make_context(members, 0, {"fusion": (SIZE, set(range(members)))})
    rng = np.random.default_rng(11)
    common = rng.normal(0, 0.2, SIZE)
    updates = {name: (common + rng.normal(0, 0.1, SIZE)).astype(np.float32) for name in context.members}
    vectors = {name: {"fusion": quantise(update, 1.0, 16, DITHER)} for name, update in updates.items()}
    return Federation(context, vectors), updates


def masked_words(federation: Federation) -> dict[str, np.ndarray]:
    """Member -> the masked values as they came, uint32 below 2^wire_bits."""
    bits = federation.context.params.wire_bits
    size = federation.context.schema.by_name["fusion"].size + 1
    return {
        name: unpack(reply.slices["fusion"], size, bits)
        for stage, name, reply in federation.received
        if stage is Stage.MASK
    }


def correlation(federation: Federation, words: np.ndarray, update: np.ndarray) -> float:
    """Of words mod 2^wire_bits, read as signed numbers, with an update."""
    unused = np.uint32(32 - federation.context.params.wire_bits)
    centred = (words << unused).view(np.int32)
    return float(np.corrcoef(centred.astype(np.float64), update)[0, 1])


def test_no_update_can_be_correlated_out_of_anything_the_server_receives():
    """Independent samples of length d correlate with standard deviation 1 / sqrt(d); the true ones with 1."""
    federation, updates = federation_with_updates()
    federation.play()
    bound = SIGMAS / math.sqrt(SIZE)
    for words in masked_words(federation).values():
        for update in updates.values():
            assert abs(correlation(federation, words[:-1], update)) < bound
    plain = federation.vectors["site01"]["fusion"]
    assert correlation(federation, plain, updates["site01"]) > 0.99  # the yardstick sees what is not masked


def test_no_sum_of_some_masked_vectors_gives_their_updates_away():
    """Pairwise masks between all of them are in no proper subset, and the self-masks are in every one."""
    federation, updates = federation_with_updates(4)
    federation.play(until=Stage.CONFIRM)
    words = masked_words(federation)
    bound = SIGMAS / math.sqrt(SIZE)
    for size in range(1, 5):
        for names in itertools.combinations(words, size):
            total = sum((words[name] for name in names), np.zeros(SIZE + 1, dtype=np.uint32))
            assert abs(correlation(federation, total[:-1], sum(updates[name] for name in names))) < bound


def test_sum_of_all_but_one_stays_masked_after_the_sum_of_all_is_open():
    federation, updates = federation_with_updates(4)
    federation.play()
    words = masked_words(federation)
    opened = federation.server.sums()["fusion"].values.astype(np.uint32)
    rest = sum((words[name][:-1] for name in list(words)[1:]), np.zeros(SIZE, dtype=np.uint32))
    assert abs(correlation(federation, opened - rest, updates["site01"])) < SIGMAS / math.sqrt(SIZE)
    plain = [federation.vectors[name]["fusion"] for name in list(words)[1:]]
    assert correlation(federation, opened - sum(plain), updates["site01"]) > 0.99  # so would it be without masks


def test_no_piece_of_a_plain_update_is_in_the_received_bytes():
    """Four coordinates in a row, as floats or as ring elements: by chance once in 2^128."""
    federation, updates = federation_with_updates()
    federation.play()
    received = b"".join(bytes(reply) for _, _, reply in federation.received)
    for name, update in updates.items():
        levels = federation.vectors[name]["fusion"]
        for plain in (
            update.astype("<f4").tobytes(),
            levels.tobytes(),
            pack(levels, federation.context.params.wire_bits).tobytes(),
        ):
            for start in range(0, len(plain), 16 * 50):
                assert plain[start : start + 16] not in received


def test_length_of_every_message_is_independent_of_the_data():
    lengths = []
    for scale in (0.0, 1.0):
        federation, updates = federation_with_updates()
        for name, update in updates.items():
            scaled = (scale * update).astype(np.float32)
            federation.vectors[name] = {"fusion": quantise(scaled, 1.0, 16, DITHER)}
        federation.play()
        lengths.append([(stage, name, len(bytes(reply))) for stage, name, reply in federation.received])
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize(
    ("member", "value_bits", "wire_bits"), [("site01", 16, 21), ("site03", 19, 24), ("site05", 24, 32)]
)
def test_masked_vector_cannot_be_told_from_uniform(member, value_bits, wire_bits):
    """Chi-squared over the values of each byte of the words of a masked zero vector, 255 degrees of freedom.

    The mean is 255 and the standard deviation sqrt(510); Wilson and Hilferty's cube root makes it normal.
    """
    federation = make_federation(5, components={"fusion": (60_000, set(range(5)))}, value_bits=value_bits)
    assert federation.context.params.wire_bits == wire_bits
    for vector in federation.vectors.values():
        vector["fusion"][:] = 0
    federation.play(until=Stage.CONFIRM)
    words = masked_words(federation)[member]
    sent = next(r.slices["fusion"] for stage, name, r in federation.received if (stage, name) == (Stage.MASK, member))
    # Three values in a word of 8 bytes, or each value on its own.
    octets = sent.reshape(-1, 8) if wire_bits == 21 else words.view(np.uint8).reshape(-1, 4)[:, : wire_bits // 8]
    for column in octets.T:
        counts = np.bincount(column, minlength=256)
        expected = len(column) / 256
        statistic = ((counts - expected) ** 2 / expected).sum()
        free, third = 255, 1 / 3
        normal = ((statistic / free) ** third - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
        assert abs(normal) < SIGMAS
    uniform = np.sort(words) / 2.0**wire_bits
    distance = np.abs(uniform - (np.arange(len(words)) + 0.5) / len(words)).max() + 0.5 / len(words)
    # Kolmogorov and Smirnov: P[D sqrt(m) > x] is about 2 exp(-2 x^2), 1e-9 at x = 3.28.
    assert distance * math.sqrt(len(words)) < 3.28


def test_client_uploads_only_the_components_it_owns():
    federation = make_federation(5, 0, {"image": (9, {0, 1, 2}), "fusion": (4, set(range(5)))})
    federation.play()
    for stage, name, reply in federation.received:
        if stage is Stage.MASK:
            owned = {spec.name for spec in federation.context.schema.owned_by(name)}
            assert set(Masked.from_bytes(reply.message).digests) == set(reply.slices) == owned
    refused = make_federation(5, 0, {"image": (9, {0, 1, 2}), "fusion": (4, set(range(5)))})
    refused.play(until=Stage.MASK)
    refused.server.bind_model(MODEL)
    refused.vectors["site05"]["image"] = np.zeros(9, dtype=np.uint32)
    with pytest.raises(SecAggError, match=Code.VECTOR_MISMATCH):
        refused.answer("site05", Stage.MASK, refused.server.request("site05"))


def test_masks_of_a_component_run_between_its_owners_only():
    """A non-owner's masking key is enough to open a component's pairwise mask only where it owns a part."""
    federation = make_federation(5, 0, {"image": (9, {0, 1, 2}), "fusion": (4, {2, 3, 4})})
    federation.play(drops={Stage.MASK: {"site05"}})
    sums = federation.server.sums()
    assert (sums["image"].values == federation.plain_sum("image", ("site01", "site02", "site03"))).all()
    assert (sums["fusion"].values == federation.plain_sum("fusion", ("site03", "site04"))).all()


@pytest.mark.parametrize(
    ("vector", "code"),
    [
        (np.zeros(7, dtype=np.uint32), Code.VECTOR_MISMATCH),
        (np.zeros(8, dtype=np.int64), Code.VECTOR_MISMATCH),
        (np.zeros((2, 4), dtype=np.uint32), Code.VECTOR_MISMATCH),
        (np.full(8, 2**15, dtype=np.uint32), Code.OUT_OF_RANGE),
        (np.full(8, 2**31, dtype=np.uint32), Code.OUT_OF_RANGE),
    ],
)
def test_vector_of_another_shape_or_beyond_its_range_never_leaves(vector, code):
    federation = make_federation(4)
    federation.play(until=Stage.MASK)
    federation.server.bind_model(MODEL)
    federation.vectors["site01"]["fusion"] = vector
    with pytest.raises(SecAggError, match=code):
        federation.answer("site01", Stage.MASK, federation.server.request("site01"))
