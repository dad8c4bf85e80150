"""What the server receives over a whole round: no update can be read or correlated out of it.

Statistical levels: every test fails on an honest build with probability below 1e-9 a comparison.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_federation import MODEL, STAGES, Federation, make_context, make_federation

from secure_fed.errors import SecAggError
from secure_fed.secagg import Code, Stage, quantise, system_dither
from secure_fed.secagg.messages import Masked

SIGMAS = 6.5  # two-sided normal tail beyond it: 8e-11
SIZE = 20_000


def federation_with_updates(members: int = 5) -> tuple[Federation, dict[str, np.ndarray]]:
    """Everybody trains towards a common direction plus its own, as real updates do."""
    context = make_context(members, 0, {"fusion": (SIZE, set(range(members)))})
    rng = np.random.default_rng(11)
    common = rng.normal(0, 0.2, SIZE)
    updates = {name: (common + rng.normal(0, 0.1, SIZE)).astype(np.float32) for name in context.members}
    vectors = {name: {"fusion": quantise(update, 1.0, 16, system_dither())} for name, update in updates.items()}
    return Federation(context, vectors), updates


def masked_words(federation: Federation) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(Masked.from_bytes(data).slices["fusion"], dtype="<u4")
        for stage, name, data in federation.received
        if stage is Stage.MASK
    }


def correlation(words: np.ndarray, update: np.ndarray) -> float:
    return float(np.corrcoef(words.view(np.int32).astype(np.float64), update)[0, 1])


def test_no_update_can_be_correlated_out_of_anything_the_server_receives():
    """Independent samples of length d correlate with standard deviation 1 / sqrt(d); the true ones with 1."""
    federation, updates = federation_with_updates()
    federation.play()
    bound = SIGMAS / math.sqrt(SIZE)
    for words in masked_words(federation).values():
        for update in updates.values():
            assert abs(correlation(words[:-1], update)) < bound
    plain = federation.vectors["site01"]["fusion"]
    assert correlation(plain, updates["site01"]) > 0.99  # the yardstick sees what is not masked


def test_no_sum_of_some_masked_vectors_gives_their_updates_away():
    """Pairwise masks between all of them are in no proper subset, and the self-masks are in every one."""
    federation, updates = federation_with_updates(4)
    federation.play(until=Stage.CONFIRM)
    words = masked_words(federation)
    bound = SIGMAS / math.sqrt(SIZE)
    for size in range(1, 5):
        for names in itertools.combinations(words, size):
            total = sum((words[name] for name in names), np.zeros(SIZE + 1, dtype=np.uint32))
            assert abs(correlation(total[:-1], sum(updates[name] for name in names))) < bound


def test_sum_of_all_but_one_stays_masked_after_the_sum_of_all_is_open():
    federation, updates = federation_with_updates(4)
    federation.play()
    words = masked_words(federation)
    opened = federation.server.sums()["fusion"].values.astype(np.uint32)
    rest = sum((words[name][:-1] for name in list(words)[1:]), np.zeros(SIZE, dtype=np.uint32))
    assert abs(correlation(opened - rest, updates["site01"])) < SIGMAS / math.sqrt(SIZE)


def test_no_piece_of_a_plain_update_is_in_the_received_bytes():
    """Four coordinates in a row, as floats or as ring elements: by chance once in 2^128."""
    federation, updates = federation_with_updates()
    federation.play()
    received = b"".join(data for _, _, data in federation.received)
    for name, update in updates.items():
        for plain in (update.astype("<f4").tobytes(), federation.vectors[name]["fusion"].tobytes()):
            for start in range(0, len(plain), 16 * 50):
                assert plain[start : start + 16] not in received


def test_length_of_every_message_is_independent_of_the_data():
    lengths = []
    for scale in (0.0, 1.0):
        federation, updates = federation_with_updates()
        for name, update in updates.items():
            federation.vectors[name] = {"fusion": quantise(scale * update, 1.0, 16, system_dither())}
        federation.play()
        lengths.append([(stage, name, len(data)) for stage, name, data in federation.received])
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("member", ["site01", "site03", "site05"])
def test_masked_vector_cannot_be_told_from_uniform(member):
    """Chi-squared over the values of each of the four bytes of a masked zero vector, 255 degrees of freedom.

    The mean is 255 and the standard deviation sqrt(510); Wilson and Hilferty's cube root makes it normal.
    """
    federation = make_federation(5, components={"fusion": (60_000, set(range(5)))})
    for vector in federation.vectors.values():
        vector["fusion"][:] = 0
    federation.play(until=Stage.CONFIRM)
    words = masked_words(federation)[member]
    octets = words.view(np.uint8).reshape(-1, 4)
    for position in range(4):
        counts = np.bincount(octets[:, position], minlength=256)
        expected = len(words) / 256
        statistic = ((counts - expected) ** 2 / expected).sum()
        free, third = 255, 1 / 3
        normal = ((statistic / free) ** third - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
        assert abs(normal) < SIGMAS
    uniform = np.sort(words) / 2.0**32
    distance = np.abs(uniform - (np.arange(len(words)) + 0.5) / len(words)).max() + 0.5 / len(words)
    # Kolmogorov and Smirnov: P[D sqrt(m) > x] is about 2 exp(-2 x^2), 1e-9 at x = 3.28.
    assert distance * math.sqrt(len(words)) < 3.28


def test_client_uploads_only_the_components_it_owns():
    federation = make_federation(5, 0, {"image": (9, {0, 1, 2}), "fusion": (4, set(range(5)))})
    federation.play()
    for stage, name, data in federation.received:
        if stage is Stage.MASK:
            owned = {spec.name for spec in federation.context.schema.owned_by(name)}
            assert set(Masked.from_bytes(data).slices) == owned
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


# Messages that are no messages


CODES = {str(code) for code in Code}


@st.composite
def disturbances(draw):
    """Flip, cut, extend or replace bytes of a message of any length; never leaves it as it was."""
    how = draw(st.sampled_from(["flip", "cut", "extend", "replace"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    flip, junk = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=40))

    def disturb(data: bytes) -> bytes:
        position = int(where * len(data))
        if how == "flip":
            return data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
        return {"cut": data[:position], "extend": data + junk, "replace": junk}[how]

    return disturb


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.sampled_from(STAGES), disturbances())
def test_server_treats_any_disturbed_message_as_a_dropout_with_a_fixed_code(stage, disturb):
    federation = make_federation(4)
    federation.play(until=stage)
    if stage is Stage.MASK:
        federation.server.bind_model(MODEL)
    federation.collect(tamper=lambda name, raw: disturb(raw) if name == "site02" else raw)
    if "site02" not in federation.server.answered:
        assert federation.server.faults["site02"] in CODES
    else:
        # The server cannot look into a sealed share, and a released share is checked only when it is used.
        assert stage in (Stage.SHARE, Stage.UNMASK)
    federation.server.advance()
    federation.play(tolerate={Code.SHARE_UNREADABLE})
    opened = federation.server.sums()["fusion"]
    assert (opened.values == federation.plain_sum("fusion", opened.contributors)).all()


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.sampled_from(STAGES[1:]), disturbances())
def test_client_refuses_any_disturbed_message_with_a_fixed_code_and_nothing_else(stage, disturb):
    federation = make_federation(4)
    federation.play(until=stage)
    if stage is Stage.MASK:
        federation.server.bind_model(MODEL)
    request = disturb(federation.server.request("site01"))
    with pytest.raises(SecAggError) as caught:
        federation.answer("site01", stage, request)
    assert caught.value.code in CODES


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.sampled_from(STAGES), st.sampled_from(STAGES[1:]))
def test_client_in_one_stage_refuses_the_message_of_another(at, of):
    federation, other = make_federation(4), make_federation(4)
    for item, stage in ((federation, at), (other, of)):
        item.play(until=stage)
        if stage is Stage.MASK:
            item.server.bind_model(MODEL)
    if at is of:
        return
    with pytest.raises(SecAggError) as caught:
        federation.answer("site01", of, other.server.request("site01"))
    assert caught.value.code == Code.WRONG_STAGE


def test_duplicate_answer_is_ignored_and_noted():
    federation = make_federation(4)
    federation.play(until=Stage.MASK)
    federation.server.bind_model(MODEL)
    reply = federation.answer("site01", Stage.MASK, federation.server.request("site01"))
    assert federation.server.receive("site01", reply)
    assert not federation.server.receive("site01", reply)
    assert federation.server.faults == {"site01": Code.DUPLICATE_MESSAGE}
    federation.collect(absent={"site01"})
    federation.server.advance()
    federation.play()
    assert "site01" in federation.server.sums()["fusion"].contributors


def test_message_of_another_version_is_refused_by_name():
    federation = make_federation(4)
    raw = federation.answer("site01", Stage.ADVERTISE, b"")
    version = b"i" + (2).to_bytes(8, "big") + b"\x00\x01"
    assert version in raw
    assert not federation.server.receive("site01", raw.replace(version, version[:-1] + b"\x02", 1))
    assert federation.server.faults["site01"] == Code.UNSUPPORTED_VERSION
