"""What a malicious server, alone or with corrupt members, tries against honest clients, and does not get."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib

import pytest
from secagg_federation import BASIS, MODEL, Federation, at, make_federation, refused, survivors_of

from secure_fed.errors import SecAggError
from secure_fed.secagg import ClientSession, Code, Stage
from secure_fed.secagg.messages import (
    Advertise,
    Advertisements,
    Confirm,
    Confirmations,
    Release,
    ReleasedShares,
    ShareBundle,
    ShareDelivery,
    Survivors,
)
from secure_fed.secagg.session import MASK_KEY, seed_name, survivors_statement

OTHER_MODEL = hashlib.sha256(b"another model").digest()


def advertisements(federation: Federation) -> dict[str, bytes]:
    """Member -> its advertisement, in the order in which the server sends them."""
    return dict(sorted(federation.server._advertisements.items()))


# Keys and advertisements


def test_key_substitution_in_an_advertisement_is_refused():
    federation = at(Stage.SHARE)
    listed = [Advertise.from_bytes(raw) for raw in advertisements(federation).values()]
    for field in ("cipher_key", "mask_key"):
        forged = [dataclasses.replace(item) for item in listed]
        forged[1] = dataclasses.replace(listed[1], **{field: listed[2].cipher_key})
        message = Advertisements(tuple(item.to_bytes() for item in forged)).to_bytes()
        with refused(Code.BAD_SIGNATURE):
            federation.answer("site01", Stage.SHARE, message)


def test_substitution_of_the_clients_own_key_is_refused_even_when_validly_signed():
    federation = at(Stage.SHARE)
    again = ClientSession(federation.context, "site01", federation.signers["site01"]).advertise(BASIS)
    raw = {**advertisements(federation), "site01": again}
    with refused(Code.OWN_KEY_CHANGED):
        federation.answer("site01", Stage.SHARE, Advertisements(tuple(raw.values())).to_bytes())


def test_advertisement_of_a_stranger_is_refused():
    federation, larger = at(Stage.SHARE, 4), make_federation(5)
    stranger = ClientSession(larger.context, "site05", larger.signers["site05"]).advertise(BASIS)
    raw = (*advertisements(federation).values(), stranger)
    with refused(Code.UNKNOWN_MEMBER):
        federation.answer("site01", Stage.SHARE, Advertisements(raw).to_bytes())


def test_duplicated_member_cannot_fill_up_a_cohort():
    federation = at(Stage.SHARE)
    raw = list(advertisements(federation).values())
    with refused(Code.DUPLICATE_MEMBER):
        federation.answer("site01", Stage.SHARE, Advertisements((raw[0], raw[1], raw[1])).to_bytes())


def test_advertisement_replayed_from_another_round_run_or_attempt_is_refused():
    federation = at(Stage.SHARE)
    for other in ({"round_": 2}, {"run": "other"}, {"attempt": 1}):
        replayed = at(Stage.SHARE, **other).server._advertisements["site02"]
        raw = {**advertisements(federation), "site02": replayed}
        with refused(Code.WRONG_SESSION):
            federation.answer("site01", Stage.SHARE, Advertisements(tuple(raw.values())).to_bytes())


def test_public_key_of_low_order_is_refused_by_client_and_server():
    federation = make_federation()
    honest = Advertise.from_bytes(federation.answer("site02", Stage.ADVERTISE, b""))
    draft = dataclasses.replace(honest, mask_key=bytes(32))
    weak = dataclasses.replace(draft, signature=federation.signers["site02"](draft.statement()))
    with refused(Code.BAD_KEY):
        federation.context.check_advertisement(weak)
    assert not federation.server.receive("site02", weak.to_bytes())
    assert federation.server.faults["site02"] == Code.BAD_KEY


def test_too_small_a_cohort_gets_no_shares():
    federation = at(Stage.SHARE, min_cohort=5)
    raw = tuple(advertisements(federation).values())[:4]
    with refused(Code.COHORT_TOO_SMALL):
        federation.answer("site01", Stage.SHARE, Advertisements(raw).to_bytes())


# Sealed shares


def test_sealed_share_that_was_changed_swapped_or_replayed_ends_the_clients_session():
    federation = at(Stage.MASK)
    delivery = ShareDelivery.from_bytes(federation.server.request("site01"))
    sealed = delivery.sealed
    replayed = at(Stage.MASK)  # the same session parameters, other ephemeral keys
    flipped = sealed["site02"][:-1] + bytes([sealed["site02"][-1] ^ 1])
    attacks = {
        "changed": {**sealed, "site02": flipped},
        "swapped": {**sealed, "site02": sealed["site03"], "site03": sealed["site02"]},
        "replayed": {**sealed, "site02": replayed.server._sealed["site02"]["site01"]},
        "of another holder": {**sealed, "site02": federation.server._sealed["site02"]["site03"]},
        "cut off": {**sealed, "site02": b""},
    }
    for attack in attacks.values():
        with refused(Code.SHARE_UNREADABLE):
            federation.answer("site01", Stage.MASK, dataclasses.replace(delivery, sealed=attack).to_bytes())


def test_shares_under_another_set_of_advertisements_do_not_open():
    """A member that advertises one key to some and another to others splits U1, and the split is noticed."""
    federation = at(Stage.SHARE)
    raw = advertisements(federation)
    second = ClientSession(federation.context, "site05", federation.signers["site05"]).advertise(BASIS)
    bundle = federation.answer("site02", Stage.SHARE, Advertisements((*list(raw.values())[:4], second)).to_bytes())
    federation.answer("site01", Stage.SHARE, Advertisements(tuple(raw.values())).to_bytes())
    sealed = {"site02": ShareBundle.from_bytes(bundle).sealed["site01"]}
    for name in ("site03", "site04"):
        other = federation.answer(name, Stage.SHARE, Advertisements(tuple(raw.values())).to_bytes())
        sealed[name] = ShareBundle.from_bytes(other).sealed["site01"]
    with refused(Code.SHARE_UNREADABLE):
        delivery = ShareDelivery(federation.context.kid, ("site01", *sealed), sealed)
        federation.answer("site01", Stage.MASK, delivery.to_bytes())


def test_too_few_sharers_get_no_masked_vector():
    federation = at(Stage.MASK)
    delivery = ShareDelivery.from_bytes(federation.server.request("site01"))
    fewer = ShareDelivery(delivery.kid, ("site01", "site05"), {"site05": delivery.sealed["site05"]})
    with refused(Code.COHORT_TOO_SMALL):
        federation.answer("site01", Stage.MASK, fewer.to_bytes())


# The model


def test_client_with_another_model_is_left_out_and_the_sum_stays_right():
    federation = make_federation(5)
    federation.models = {"site03": OTHER_MODEL}
    federation.play()
    assert federation.server.faults == {"site03": Code.WRONG_SESSION}
    opened = federation.server.sums()["fusion"]
    assert "site03" not in opened.contributors
    assert (opened.values == federation.plain_sum("fusion", opened.contributors)).all()


def test_server_that_gives_other_models_to_other_clients_gets_no_release():
    """Three clients train on one model and two on another: neither group reaches t over its session id."""
    federation = at(Stage.MASK, 6, 1)  # t = 4
    groups = {MODEL: ("site01", "site02", "site03"), OTHER_MODEL: ("site04", "site05", "site06")}
    sids = {model: federation.context.sid(federation.server._u1_hash, federation.server._u2, model) for model in groups}
    federation.models = {name: model for model, names in groups.items() for name in names}
    everyone = federation.context.members
    for name in everyone:
        federation.answer(name, Stage.MASK, federation.server.request(name))
    for model, names in groups.items():
        with refused(Code.WRONG_SESSION):
            other = next(sid for key, sid in sids.items() if key != model)
            federation.answer(names[0], Stage.CONFIRM, Survivors(other, everyone).to_bytes())
        signatures = {
            name: Confirm.from_bytes(
                federation.answer(name, Stage.CONFIRM, Survivors(sids[model], everyone).to_bytes())
            ).signature
            for name in names
        }
        with refused(Code.TOO_FEW_SIGNATURES):
            federation.answer(names[0], Stage.UNMASK, Confirmations(sids[model], signatures).to_bytes())


# Survivors


@pytest.mark.parametrize(
    ("survivors", "code"),
    [
        (("site02", "site03", "site04", "site05"), Code.NOT_A_SURVIVOR),
        (("site01", "site02", "site03", "site04", "site99"), Code.SURVIVOR_UNKNOWN),
        (("site01", "site01", "site02", "site02"), Code.DUPLICATE_MEMBER),
        (("site01", "site03", "site02", "site04"), Code.MALFORMED_MESSAGE),
        (("site01", "site02"), Code.COHORT_TOO_SMALL),
    ],
)
def test_survivor_list_that_is_not_what_it_should_be_is_not_signed(survivors, code):
    federation = at(Stage.CONFIRM)
    message = Survivors(survivors_of(federation).sid, survivors).to_bytes()
    with refused(code):
        federation.answer("site01", Stage.CONFIRM, message)


def test_survivor_that_never_shared_is_refused():
    federation = make_federation(5)
    federation.play(until=Stage.CONFIRM, drops={Stage.SHARE: {"site05"}})
    with refused(Code.SURVIVOR_UNKNOWN):
        message = Survivors(survivors_of(federation).sid, federation.context.members)
        federation.answer("site01", Stage.CONFIRM, message.to_bytes())


def split_lists(federation: Federation, corrupt: set[str], alive: set[str]) -> list[dict[str, bytes]]:
    """The server tells the honest members in `alive` that site01 survived, and the others that it did not.

    Corrupt members sign both lists. Gives the signatures over either list.
    """
    sid, everyone = survivors_of(federation).sid, federation.context.members
    lists = (everyone, everyone[1:])
    signatures: list[dict[str, bytes]] = [{}, {}]
    for name in everyone:
        if name in corrupt:
            for side, listed in enumerate(lists):
                signatures[side][name] = federation.signers[name](survivors_statement(sid, listed))
            continue
        side = 0 if name in alive else 1
        reply = federation.answer(name, Stage.CONFIRM, Survivors(sid, lists[side]).to_bytes())
        signatures[side][name] = Confirm.from_bytes(reply).signature
    return signatures


def secrets_of_the_victim(federation: Federation, corrupt: set[str], alive: set[str]) -> set[str]:
    """Play the split to the end: the kinds of shares of site01 that honest members release."""
    sid = survivors_of(federation).sid
    released: set[str] = set()
    for signatures in split_lists(federation, corrupt, alive):
        message = Confirmations(sid, signatures).to_bytes()
        for name in set(federation.context.members) - corrupt:
            with contextlib.suppress(SecAggError):
                reply = federation.answer(name, Stage.UNMASK, message)
                raw = Release.from_bytes(reply).released["site01"]
                released |= set(ReleasedShares.from_bytes(raw).shares)
    return released


@pytest.mark.parametrize(("members", "corrupt"), [(3, 0), (4, 0), (5, 1), (6, 2), (7, 2), (8, 3)])
def test_server_that_lists_a_client_as_dead_and_alive_never_gets_both_of_its_secrets(members, corrupt):
    """However the honest are split, with the corrupt signing both lists, at most one list wins."""
    for told_alive in range(1, members - corrupt + 1):
        federation = at(Stage.CONFIRM, members, corrupt)
        everyone = federation.context.members
        colluding, alive = set(everyone[members - corrupt :]), set(everyone[:told_alive])
        released = secrets_of_the_victim(federation, colluding, alive)
        assert released in (set(), {MASK_KEY}, {seed_name("fusion")})


def test_client_signs_one_survivor_list_only():
    federation = at(Stage.CONFIRM)
    listed = survivors_of(federation)
    federation.answer("site01", Stage.CONFIRM, listed.to_bytes())
    with refused(Code.EQUIVOCATION):
        smaller = dataclasses.replace(listed, survivors=listed.survivors[:4])
        federation.answer("site01", Stage.CONFIRM, smaller.to_bytes())


# Release


def test_forged_stranger_and_replayed_confirmations_release_nothing():
    federation = at(Stage.UNMASK)
    good = Confirmations.from_bytes(federation.server.request("site01"))
    replayed = Confirmations.from_bytes(at(Stage.UNMASK, round_=2).server.request("site01"))
    attacks = [
        (dict(list(good.signatures.items())[:2]), Code.TOO_FEW_SIGNATURES),
        ({**good.signatures, "site02": good.signatures["site03"]}, Code.BAD_SIGNATURE),
        ({**good.signatures, "site99": good.signatures["site03"]}, Code.SURVIVOR_UNKNOWN),
        (replayed.signatures, Code.BAD_SIGNATURE),
        ({}, Code.TOO_FEW_SIGNATURES),
    ]
    for signatures, code in attacks:
        with refused(code):
            federation.answer("site01", Stage.UNMASK, Confirmations(good.sid, signatures).to_bytes())
    with refused(Code.WRONG_SESSION):
        federation.answer("site01", Stage.UNMASK, replayed.to_bytes())


def test_shares_are_released_once():
    federation = at(Stage.UNMASK)
    request = federation.server.request("site01")
    federation.answer("site01", Stage.UNMASK, request)
    with refused(Code.WRONG_STAGE):
        federation.answer("site01", Stage.UNMASK, request)


def test_failed_check_ends_the_session_and_erases_its_secrets():
    federation = at(Stage.UNMASK)
    session = federation.client("site01")
    good = federation.server.request("site01")
    sid = Confirmations.from_bytes(good).sid
    with refused(Code.TOO_FEW_SIGNATURES):
        session.unmask(Confirmations(sid, {}).to_bytes())
    assert session.stage is Stage.FAILED
    assert not session._state.held
    with refused(Code.WRONG_STAGE):
        session.unmask(good)
