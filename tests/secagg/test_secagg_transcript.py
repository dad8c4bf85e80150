"""The transcript as a checkpoint: it stands alone, and no list that honest clients would not sign gets through."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from secagg_federation import MODEL, Federation, make_context, make_federation, refused

from secure_fed.secagg import Code, Stage, Transcript
from secure_fed.secagg.session import survivors_statement

MEMBERS = 8
OUTSIDER = "site08"  # advertised but never dealt shares


def played() -> tuple[Federation, Transcript]:
    """n = 8, C = 1, t = 5; site08 is not in U2, site02 not in U3, site05 does not confirm."""
    federation = make_federation(MEMBERS, 1)
    drops = {Stage.SHARE: {OUTSIDER}, Stage.MASK: {"site02"}, Stage.CONFIRM: {"site05"}}
    federation.play(drops=drops)
    return federation, Transcript.from_bytes(federation.server.transcript().to_bytes())


def signed_by(federation: Federation, transcript: Transcript, signers: tuple[str, ...]) -> Transcript:
    """The transcript with the valid signatures of members who would sign anything."""
    sid = federation.context.sid(transcript.u1_hash, transcript.u2, transcript.model_hash)
    statement = survivors_statement(sid, transcript.survivors)
    signatures = {name: federation.signers[name](statement) for name in signers}
    return dataclasses.replace(transcript, signatures=signatures)


def test_transcript_verifies_with_the_context_and_the_model_alone():
    federation, transcript = played()
    assert OUTSIDER not in transcript.u2
    assert "site02" not in transcript.survivors
    assert "site05" not in transcript.signatures
    fresh = make_context(MEMBERS, 1)
    fresh.check_transcript(transcript, MODEL)
    everybody = tuple(federation.context.members)
    whole = dataclasses.replace(transcript, u2=everybody, survivors=everybody)
    fresh.check_transcript(signed_by(federation, whole, everybody), MODEL)


FORGERIES: dict[str, tuple[Code, Callable[[Transcript], dict[str, object]]]] = {
    "survivors reordered": (Code.MALFORMED_MESSAGE, lambda t: {"survivors": t.survivors[::-1]}),
    "survivors repeated": (Code.DUPLICATE_MEMBER, lambda t: {"survivors": (t.survivors[0], *t.survivors)}),
    "survivors beyond U2": (Code.SURVIVOR_UNKNOWN, lambda t: {"survivors": (*t.survivors, OUTSIDER)}),
    "survivors below the quorum": (Code.COHORT_TOO_SMALL, lambda t: {"survivors": t.survivors[:4]}),
    "U2 reordered": (Code.MALFORMED_MESSAGE, lambda t: {"u2": t.u2[::-1]}),
    "U2 repeated": (Code.DUPLICATE_MEMBER, lambda t: {"u2": (t.u2[0], *t.u2)}),
    "U2 beyond the roster": (Code.UNKNOWN_MEMBER, lambda t: {"u2": (*t.u2, "site99")}),
    "U2 below the quorum": (Code.COHORT_TOO_SMALL, lambda t: {"u2": t.u2[:4], "survivors": t.u2[:4]}),
}


@pytest.mark.parametrize(("code", "changes"), FORGERIES.values(), ids=FORGERIES.keys())
def test_lists_that_no_honest_client_signs_are_refused_even_when_everybody_signed_them(code, changes):
    federation, transcript = played()
    forged = dataclasses.replace(transcript, **changes(transcript))
    signers = tuple(sorted(set(forged.survivors)))
    with refused(code):
        federation.context.check_transcript(signed_by(federation, forged, signers), MODEL)


@pytest.mark.parametrize(
    "changes",
    [
        lambda t: {"survivors": t.survivors[1:], "signatures": dict(list(t.signatures.items())[1:])},
        lambda t: {"survivors": tuple(sorted((*t.survivors, "site02")))},
        lambda t: {"u2": tuple(sorted((*t.u2, OUTSIDER)))},
        lambda t: {"u1_hash": bytes(32)},
        lambda t: {"signatures": {**t.signatures, "site01": t.signatures["site03"]}},
        lambda t: {"signatures": {**t.signatures, "site05": bytes(64)}},
    ],
    ids=["survivor taken out", "survivor put in", "U2 longer", "another U1", "one signature for two", "no signature"],
)
def test_transcript_that_was_changed_after_it_was_signed_is_refused(changes):
    federation, transcript = played()
    forged = dataclasses.replace(transcript, **changes(transcript))
    with refused(Code.BAD_SIGNATURE):
        federation.context.check_transcript(forged, MODEL)


def test_transcript_with_fewer_than_t_signatures_or_of_others_than_survivors_is_refused():
    federation, transcript = played()
    fewer = dataclasses.replace(transcript, signatures=dict(list(transcript.signatures.items())[:4]))
    with refused(Code.TOO_FEW_SIGNATURES):
        federation.context.check_transcript(fewer, MODEL)
    dropped = signed_by(federation, transcript, (*transcript.survivors, "site02"))
    with refused(Code.SURVIVOR_UNKNOWN):
        federation.context.check_transcript(dropped, MODEL)


def test_transcript_attests_no_other_model_and_no_other_session():
    federation, transcript = played()
    other_model = bytes(32)
    with refused(Code.WRONG_SESSION):
        federation.context.check_transcript(transcript, other_model)
    relabelled = dataclasses.replace(transcript, model_hash=other_model)
    with refused(Code.BAD_SIGNATURE):
        federation.context.check_transcript(relabelled, other_model)
    for other in ({"round_": 2}, {"attempt": 1}, {"run": "other"}):
        context = make_context(MEMBERS, 1, **other)
        with refused(Code.WRONG_SESSION):
            context.check_transcript(transcript, MODEL)
        with refused(Code.BAD_SIGNATURE):
            context.check_transcript(dataclasses.replace(transcript, kid=context.kid), MODEL)
