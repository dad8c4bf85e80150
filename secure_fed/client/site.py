"""A site's answers to the coordinator's messages: gate, follow, train, mask, confirm, unmask.

Every failure is one of a few fixed codes; the reason stays in the site's own log.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from secure_fed.client.books import close_run, note_refusal, open_ledger
from secure_fed.client.faults import is_silent
from secure_fed.client.features import features_kept
from secure_fed.client.following import DIVERGED, Follower
from secure_fed.client.halt import HALTED, halt, halted
from secure_fed.client.held_out import KEY_PURPOSE, SiteRecords
from secure_fed.client.home import Home, of_run
from secure_fed.client.journal import Journal
from secure_fed.client.policy import Policy, admit
from secure_fed.client.public_set import PublicSets
from secure_fed.client.rotation import require_named
from secure_fed.client.sessions import Sessions
from secure_fed.client.training import LocalTraining, Update
from secure_fed.client.witness import LEDGER_BEHIND, LedgerBehind, Witnesses, own_anchor, packed, require_ahead
from secure_fed.data.records import Records
from secure_fed.errors import BudgetExhausted, PolicyRefusal, SecAggError, SecureFedError
from secure_fed.federation.announcement import Announcement
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.masking import Membership
from secure_fed.federation.members import sites_of
from secure_fed.federation.public_set import MISMATCH, OTHER, PublicSet, digest_needed
from secure_fed.federation.track import Track
from secure_fed.federation.wire import Array, Header, Parcel
from secure_fed.identity import Roster, roster_bytes
from secure_fed.ledger import Ledger, Settle
from secure_fed.privacy.noise import NoiseSource, OsNoise, ReproducibleNoise
from secure_fed.secagg import HALTING, Code, Levels, Quantiser, SessionContext, Source, Stage, fresh_secret

SILENT = "silent"
PENDING = "pending"
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (BudgetExhausted, "budget_exhausted"),
    (PolicyRefusal, "refused_by_policy"),
    (SecureFedError, "refused"),
)
_HALTING = HALTING | {DIVERGED, LEDGER_BEHIND, MISMATCH}


class SiteClient:
    """One site in one run. Holds nothing between messages that its home does not hold too."""

    def __init__(self, home: Home, config: RunConfig, roster: Path, records: Callable[[], Records]) -> None:
        """`roster` is the consortium's signed file; a newer one put in its place holds from the next session on.

        `records` gives the site's own records; it is called at most once.
        """
        self.home = home
        self.config = config
        self.policy: Policy = home.policy()
        self.membership = _membership(config, Roster.load(roster))
        self._roster_path = roster
        self._accepted = b""
        self._load_records = records
        self._journal = Journal(home)
        self._sessions = Sessions(home)
        self._follower = Follower(home, self._membership_of)
        self._public_sets = PublicSets(home)
        self._witnesses = Witnesses(home)
        self._old: dict[str, Membership] = {}

    @property
    def federation(self) -> Federation:
        """The run's public facts under the roster in force."""
        return self.membership.federation

    @property
    def site(self) -> Site:
        """This site as the roster names it; raises ConfigError where the roster does not any more."""
        return self.federation.site(self.policy.site)

    def handle(self, parcel: Parcel) -> Parcel:
        """Answer one message. Whatever goes wrong, the answer is a fixed code and no other word."""
        with self.home.alone():
            return self._handle(parcel)

    def _handle(self, parcel: Parcel) -> Parcel:
        try:
            return self._dispatch(parcel)
        except Exception as error:  # noqa: BLE001 - fail closed: an exception's text could name a patient
            return Parcel(code=self._failed(parcel, error))

    def _dispatch(self, parcel: Parcel) -> Parcel:
        header = Header.from_bytes(parcel.header)
        if is_silent(self.config, self.policy.site, header, parcel.action):
            return Parcel(code=SILENT)
        if halted(self.home) is not None:
            return Parcel(code=HALTED)
        if parcel.action in {"advertise", "mask", "plain", "finish"}:
            self._refresh()  # an owner's edit, or a new roster, holds from the next session on
        if parcel.site != self.policy.site or not parcel.is_signed_by(
            bytes.fromhex(self.membership.roster.coordinator)
        ):
            raise SecAggError("unsigned_request", "not the coordinator's request to this site")
        if parcel.action == "finish":
            return self._finish(header)
        admit(self.policy, self.federation)
        require_named(self.policy.site, self.home.signing_key().public_bytes, self.membership.roster)
        self._journal.require_unreleased(header)
        match parcel.action:
            case "advertise":
                return self._advertise(header, parcel)
            case "share":
                return Parcel(body=self._share(header, parcel.body))
            case "mask":
                return self._mask(header, parcel)
            case "confirm":
                return self._confirm(header, parcel)
            case "unmask":
                return self._unmask(header, parcel)
            case "plain":
                return self._plain(header, parcel)
            case _:
                raise SecAggError("unknown_action", parcel.action)

    def _failed(self, parcel: Parcel, error: Exception) -> str:
        """Log the reason; where the site was lied to, halt with the evidence. Returns the code to answer."""
        code = _code_of(error)
        if isinstance(error, PolicyRefusal):
            self._note_refusal(parcel, code)
        self.home.log(f"{parcel.action}: {code}\n{''.join(traceback.format_exception(error))}")
        if isinstance(error, SecAggError) and error.code in _HALTING:
            earlier = self._sessions.confirmed(Header.from_bytes(parcel.header))
            requests = [parcel] if earlier is None else [earlier, parcel]
            seen = self._sessions.advertisements(Header.from_bytes(parcel.header))
            facts = {"roster": self._roster_digest, "advertisements": {name: raw.hex() for name, raw in seen.items()}}
            if isinstance(error, LedgerBehind):
                facts |= error.facts()
            halt(self.home, self.policy.site, code, error.detail, requests, facts)
        return code

    def _note_refusal(self, parcel: Parcel, code: str) -> None:
        """The refusal on the ledger, where there is one; its reason stays in the site's own log."""
        try:
            header = Header.from_bytes(parcel.header)
            if Ledger.is_begun(self.home.ledger_path):
                with Ledger.open(self.home.ledger_path, self.policy.site, self.home.signing_key()) as ledger:
                    note_refusal(ledger, code, header.run, header.round)
        except SecureFedError as error:
            self.home.log(f"the refusal is not on the ledger: {error}")

    # -- stages ----------------------------------------------------------------------------------------

    def _advertise(self, header: Header, parcel: Parcel) -> Parcel:
        """A session begun anew, outside a round under way: whatever was prepared before is void."""
        self._journal.require_new(header)  # a message that comes late is no lie
        track = self._follow(header, parcel)
        return Parcel(body=self._begin(header, track, keep=None))

    def _begin(self, header: Header, track: Track, keep: Header | None) -> bytes:
        self._journal.begin(header)
        anchor = own_anchor(self.home, self.policy.site)
        notice = b"" if anchor is None else packed(anchor)
        return self._sessions.begin(self._context(header), self._who, header, track.digest, keep, notice)

    def _share(self, header: Header, body: bytes) -> bytes:
        context = self._context(header)

        def answer(notices: Mapping[str, bytes]) -> Mapping[str, bytes]:
            return self._witnesses.answer(notices, context.public_keys)

        return self._sessions.step(context, self._who, lambda session: session.share(body, answer))

    def _mask(self, header: Header, parcel: Parcel) -> Parcel:
        if self._sessions.stage(self._context(header), self._who) is not Stage.MASK:
            # Before anything is charged: a message out of order would otherwise cost budget.
            raise SecAggError(Code.WRONG_STAGE, "mask")
        track = self._follow(header, parcel) if parcel.announcement else self._follower.track(header)
        # Before anything is charged: what comes now would be counted on a ledger that others know to be another.
        require_ahead(self.home, self.policy.site, self._sessions.notes(self._context(header), self._who, parcel.body))
        update = self._update(header, track)
        slices = {name: self._levels(header, name, values) for name, values in update.items()}
        masked = self._sessions.step(
            self._context(header),
            self._who,
            lambda session: session.mask(parcel.body, slices, track.digest, self.config.secagg.threads),
        )
        answer = self._prepare(header, parcel, lambda upcoming: self._begin(upcoming, track, keep=header))
        return Parcel(body=masked.message, arrays=masked.slices, next_body=answer)

    def _confirm(self, header: Header, parcel: Parcel) -> Parcel:
        context = self._context(header)
        body = self._sessions.step(context, self._who, lambda session: session.confirm(parcel.body), request=parcel)
        answer = self._prepare(header, parcel, lambda upcoming: self._share(upcoming, parcel.next_body))
        return Parcel(body=body, next_body=answer)

    def _unmask(self, header: Header, parcel: Parcel) -> Parcel:
        # Journal first, reply after: a crash in between loses the reply, never the memory of it.
        body = self._sessions.end(
            self._context(header),
            self._who,
            lambda session: session.unmask(parcel.body),
            lambda: self._journal.release(header),
        )
        self._forget_update(header)
        if self.federation.phases_of(self.site, header.step):
            with open_ledger(self.home, self.policy, limited=self._limited) as ledger:
                outcome = {"run": header.run, "step": header.step, "round": header.round, "attempt": header.attempt}
                ledger.append(Settle(**outcome, outcome="released"))  # type: ignore[arg-type]
        return Parcel(body=body)

    def _prepare(self, header: Header, parcel: Parcel, answer: Callable[[Header], bytes]) -> bytes:
        """The next round's message that rides along; a failure there leaves the round under way as it is.

        Raises:
            SecAggError: only what must halt the site.
        """
        if not parcel.next_header:
            return b""
        try:
            upcoming = Header.from_bytes(parcel.next_header)
            stage = {"mask": "advertise", "confirm": "share"}[parcel.action]
            if is_silent(self.config, self.policy.site, upcoming, stage):
                return b""
            if (upcoming.run, upcoming.round) != (header.run, header.round + 1):
                raise SecAggError(Code.WRONG_SESSION, "the next session is not of the next round")
            return answer(upcoming)
        except SecureFedError as error:
            if isinstance(error, SecAggError) and error.code in _HALTING:
                raise
            self.home.log(f"{parcel.action}, next round: {error}")
            return b""

    def _plain(self, header: Header, parcel: Parcel) -> Parcel:
        """secagg=off: the update itself, for comparison only; no message can ask for it in any other run."""
        if self.config.secagg.mode != "off":
            raise PolicyRefusal(f"{self.site.name}: an unmasked update was asked for in a run with secagg=on")
        self._journal.require_new(header)
        track = self._follow(header, parcel)  # who asks for the public set is asked again under the same number
        self._journal.begin(header)
        # Nothing is kept for a second asking: each has a new number here, and is charged again.
        return Parcel(arrays=self._trained(header, track))

    def _finish(self, header: Header) -> Parcel:
        """The run is over: it charges nothing any more, and the home keeps nothing of it but ledger and journal.

        The answer is the ledger's last anchor: no advertisement follows that others would have kept. A site that never
        took part begins its ledger here, so that the run's auditor finds one.
        """
        with open_ledger(self.home, self.policy, limited=self._limited) as ledger:
            close_run(ledger, header.run, "finished")
        self.home.forget_run(header.run)
        if self.config.federation.public_set is not None:
            self._public_sets.forget(self.config.federation.public_set)
        anchor = own_anchor(self.home, self.policy.site)
        return Parcel() if anchor is None else Parcel(body=anchor.to_line())

    # -- pieces ----------------------------------------------------------------------------------------

    def _follow(self, header: Header, parcel: Parcel) -> Track:
        needed, said = digest_needed(self.federation), Announcement.from_bytes(parcel.announcement).public_set
        if said != needed:
            raise SecAggError(OTHER, f"the request is of a run with public set {said}, this run's is {needed}")
        self._public_set(parcel.arrays)
        return self._follower.follow(self.federation, header, parcel.announcement, parcel.arrays)

    def _public_set(self, arrays: Mapping[str, Array]) -> PublicSet | None:
        """The run's public set, taken from a request's `arrays` where the home lacks it; None where none is needed."""
        digest = digest_needed(self.federation)
        return None if digest is None else self._public_sets.take(self.federation.schema, digest, arrays)

    def _update(self, header: Header, track: Track) -> Update:
        """The round's noised update: the stored one where this is a retry of the same round and model."""
        key = json.dumps([header.run, header.round, track.digest.hex()]).encode()
        stored = self.home.get(of_run(PENDING, header.run))
        if stored is not None:
            known, tensors = stored.split(b"\n", maxsplit=1)
            if known == key:
                return load_tensors(tensors)
            _, number, _ = json.loads(known)
            if number > header.round:
                # Honest coordinators never go back: a round that was left behind gets no second charge.
                raise SecAggError("stale_round", f"round {header.round}, after an update for round {number}")
        update = self._trained(header, track)
        self.home.put(of_run(PENDING, header.run), key + b"\n" + save_tensors(update))
        return update

    def _trained(self, header: Header, track: Track) -> Update:
        """The round's update, drawn anew and charged."""
        public = self._public_set({})  # first: it may be gone since the round began, which must cost no budget
        with open_ledger(self.home, self.policy, limited=self._limited) as ledger:
            training = LocalTraining(
                self.federation, self.site, self.policy, ledger, lambda: self._records, self._noise, public
            )
            return training.update(header, track)

    def _forget_update(self, header: Header) -> None:
        """Delete the stored update of a released round; one of a later round stays."""
        name = of_run(PENDING, header.run)
        stored = self.home.get(name)
        if stored is not None and json.loads(stored.split(b"\n", maxsplit=1)[0])[:2] == [header.run, header.round]:
            self.home.drop(name)

    def _levels(self, header: Header, name: str, values: np.ndarray) -> Source:
        """The slice in the ring: counts as they are, anything else in fixed point, times the site's public weight."""
        secagg = self.config.secagg
        if values.dtype == np.int32:
            return Levels(values.view(np.uint32), secagg.value_bits)
        key = fresh_secret()
        if self.config.insecure_reproducible:
            seed = self._noise.derive(f"{self.site.name}/{header.round}/dither/{name}").seed()
            key = hashlib.sha256(seed.to_bytes(8, "big")).digest()
        weight = self.federation.weights[self.site.name]
        return Quantiser(values, secagg.clip, secagg.value_bits, key, weight)

    def _refresh(self) -> None:
        """Read policy and roster again; a new roster makes every open session void: its keys bind the old one."""
        self.policy = self.home.policy()
        raw = roster_bytes(self._roster_path)
        if raw == self._accepted:
            return
        roster = Roster.from_bytes(raw, self._roster_path)
        digest = roster.digest().hex()
        if self._journal.accept_roster(roster):
            self._sessions.forget_all()
        # Outcomes of rounds under it may have to be checked after the next change.
        self.home.put(_roster_file(digest), roster.model_dump_json().encode())
        if digest != self._roster_digest:
            self.membership = _membership(self.config, roster)
        self._accepted = raw

    @property
    def _roster_digest(self) -> str:
        return self.membership.digest

    def _membership_of(self, digest: str) -> Membership | None:
        """The roster with this digest, of those that this site has accepted, and what follows from it."""
        if digest == self._roster_digest:
            return self.membership
        if digest not in self._old:
            stored = self.home.get(_roster_file(digest))
            if stored is None:
                return None
            self._old[digest] = _membership(self.config, Roster.model_validate_json(stored))
        return self._old[digest]

    def _context(self, header: Header) -> SessionContext:
        return self.membership.context(header)

    @property
    def _limited(self) -> bool:
        return self.config.privacy.mode == "dp"

    @property
    def _who(self) -> tuple[str, Callable[[bytes], bytes]]:
        return self.policy.site, self.home.signing_key().sign

    @cached_property
    def _records(self) -> SiteRecords:
        config, key = self.config, self.home.derived_key(KEY_PURPOSE)
        with features_kept(self.home):
            return SiteRecords.split(
                self._load_records(), self.federation.model, config.privacy, config.evaluation, key
            )

    @cached_property
    def _noise(self) -> NoiseSource:
        return ReproducibleNoise(self.config.seed) if self.config.insecure_reproducible else OsNoise()


def _membership(config: RunConfig, roster: Roster) -> Membership:
    return Membership(roster, Federation(config, sites_of(roster)))


def _roster_file(digest: str) -> str:
    return f"roster-{digest}"


def _code_of(error: Exception) -> str:
    """The fixed code that an error becomes on the wire."""
    if isinstance(error, SecAggError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal_error")
