"""A site's answers to the coordinator's messages: gate, train, mask, confirm, unmask.

Every failure is one of a few fixed codes; the reason stays in the site's own log.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from secure_fed.client.faults import is_silent
from secure_fed.client.home import Home
from secure_fed.client.policy import Policy, admit
from secure_fed.client.training import LocalTraining, Update
from secure_fed.errors import BudgetExhausted, ConfigError, PolicyRefusal, SecAggError, SecureFedError
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation
from secure_fed.federation.masking import session_context
from secure_fed.federation.members import sites_of
from secure_fed.federation.wire import Header, Parcel
from secure_fed.identity import Roster
from secure_fed.ledger import Genesis, Ledger, Settle
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.noise import NoiseSource, OsNoise, ReproducibleNoise
from secure_fed.secagg import ClientSession, Code, KeyStream, SessionContext, Stage, quantise, system_dither

SILENT = "silent"
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (BudgetExhausted, "budget_exhausted"),
    (PolicyRefusal, "refused_by_policy"),
    (SecureFedError, "refused"),
)
Arrays = Mapping[str, npt.NDArray[np.float32]]


class SiteClient:
    """One site in one run. Holds nothing between messages that its home does not hold too."""

    def __init__(
        self, home: Home, config: RunConfig, roster: Roster, records: Callable[[MultimodalModel], Batch]
    ) -> None:
        """`records` gives the site's own records, prepared for the model; it is called at most once."""
        self.home = home
        self.config = config
        self.roster = roster
        self.policy: Policy = home.policy()
        self.federation = Federation(config, sites_of(roster))
        self.site = self.federation.site(self.policy.site)
        self._load_records = records

    def handle(self, action: str, parcel: Parcel) -> Parcel:
        """Answer one message. Whatever goes wrong, the answer is a fixed code and no other word."""
        try:
            return self._dispatch(action, parcel)
        except Exception as error:  # noqa: BLE001 - fail closed: an exception's text could name a patient
            code = _code_of(error)
            self.home.log(f"{action}: {code}\n{''.join(traceback.format_exception(error))}")
            return Parcel(code=code)

    def _dispatch(self, action: str, parcel: Parcel) -> Parcel:
        header = Header.from_bytes(parcel.header)
        if is_silent(self.config, self.site.name, header, action):
            return Parcel(code=SILENT)
        if action in {"advertise", "plain"}:
            self.policy = self.home.policy()  # an owner's edit holds from the next round on
        admit(self.policy, self.federation)
        match action:
            case "advertise":
                return self._advertise(header)
            case "share":
                return self._continue(self._session(header), lambda session: session.share(parcel.body))
            case "mask":
                return self._mask(header, parcel)
            case "confirm":
                return self._continue(self._session(header), lambda session: session.confirm(parcel.body))
            case "unmask":
                return self._unmask(header, parcel)
            case "plain":
                return self._plain(header, parcel)
            case _:
                raise SecAggError("unknown_action", action)

    # -- stages ----------------------------------------------------------------------------------------

    def _advertise(self, header: Header) -> Parcel:
        self._advance_journal(header)
        session = ClientSession(self._context(header), self.site.name, self._sign)
        body = session.advertise()
        self.home.put("session", session.to_bytes())
        return Parcel(body=body)

    def _session(self, header: Header) -> ClientSession:
        state = self.home.get("session")
        if state is None:
            raise SecAggError("no_session", "the site has no session under way")
        return ClientSession.from_bytes(state, self._context(header), self.site.name, self._sign)

    def _continue(self, session: ClientSession, answer: Callable[[ClientSession], bytes]) -> Parcel:
        try:
            return Parcel(body=answer(session))
        finally:
            # A step that failed has erased its secrets: what is stored must be that state too.
            self.home.put("session", session.to_bytes())

    def _mask(self, header: Header, parcel: Parcel) -> Parcel:
        session = self._session(header)
        if session.stage is not Stage.MASK:
            # Before anything is charged: a message out of order would otherwise cost budget.
            raise SecAggError(Code.WRONG_STAGE, "mask")
        model_hash = self._received_model(parcel.arrays)
        update = self._update(header, parcel.arrays, model_hash)
        weight = self.federation.weights[self.site.name]
        secagg = self.config.secagg
        dither = self._dither(header)
        vector = {
            name: quantise(values * np.float32(weight), secagg.clip, secagg.value_bits, dither)
            for name, values in update.items()
        }
        return self._continue(session, lambda session: session.mask(parcel.body, vector, model_hash))

    def _unmask(self, header: Header, parcel: Parcel) -> Parcel:
        def release(session: ClientSession) -> bytes:
            shares = session.unmask(parcel.body)
            # Journal first, reply after: a crash in between loses the reply, never the memory of it.
            self._journal_release(header)
            return shares

        answer = self._continue(self._session(header), release)
        self.home.drop("pending")
        self.home.drop("session")
        if self.federation.phases_of(self.site, header.step):
            with self._ledger() as ledger:
                ledger.append(
                    Settle(
                        run=header.run,
                        step=header.step,
                        round=header.round,
                        attempt=header.attempt,
                        outcome="released",
                    )
                )
        return answer

    def _plain(self, header: Header, parcel: Parcel) -> Parcel:
        """secagg=off: the update itself, for comparison only; no message can ask for it in any other run."""
        if self.config.secagg.mode != "off":
            raise PolicyRefusal(f"{self.site.name}: an unmasked update was asked for in a run with secagg=on")
        self._advance_journal(header)
        model_hash = self._received_model(parcel.arrays)
        return Parcel(arrays=self._update(header, parcel.arrays, model_hash))

    # -- pieces ----------------------------------------------------------------------------------------

    def _update(self, header: Header, arrays: Arrays, model_hash: bytes) -> Update:
        """The round's noised update: the stored one where this is a retry of the same round and model."""
        key = json.dumps([header.run, header.round, model_hash.hex()]).encode()
        stored = self.home.get("pending")
        if stored is not None and stored.startswith(key + b"\n"):
            return load_tensors(stored[len(key) + 1 :])
        with self._ledger() as ledger:
            training = LocalTraining(self.federation, self.site, self.policy, ledger, self._records, self._noise)
            update = training.update(header, arrays, model_hash)
        self.home.put("pending", key + b"\n" + save_tensors(update))
        return update

    def _received_model(self, arrays: Arrays) -> bytes:
        """The hash of the received model; raises SecAggError(bad_model) unless it is whole and finite."""
        model = self.federation.model
        if {name: array.shape for name, array in arrays.items()} != {
            name: (size,) for name, size in model.component_sizes().items()
        } or not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()):
            raise SecAggError("bad_model", "components, sizes or values")
        for name, values in arrays.items():
            model.set_component(name, values)
        return model.digest()

    def _advance_journal(self, header: Header) -> None:
        """Remember that this attempt began; raises SecAggError(stale_round) where it is not a new one."""
        journal = self._journal()
        last = journal.get(header.run, {"round": -1, "attempt": -1, "released": -1})
        if (header.round, header.attempt) <= (last["round"], last["attempt"]) or header.round <= last["released"]:
            raise SecAggError("stale_round", f"round {header.round} attempt {header.attempt} after {last}")
        journal[header.run] = {**last, "round": header.round, "attempt": header.attempt}
        self.home.put("journal", json.dumps(journal).encode())

    def _journal_release(self, header: Header) -> None:
        journal = self._journal()
        journal[header.run]["released"] = header.round
        self.home.put("journal", json.dumps(journal).encode())

    def _journal(self) -> dict[str, dict[str, int]]:
        stored = self.home.get("journal")
        if stored is None and self.home.ledger_path.exists():
            # The journal is written before the first charge: a ledger without one means that it was taken away.
            raise ConfigError(f"{self.home.root}: the journal is gone; the site cannot know which rounds it released")
        journal: dict[str, dict[str, int]] = json.loads(stored) if stored else {}
        return journal

    def _context(self, header: Header) -> SessionContext:
        return session_context(self.federation, self.roster, header)

    def _sign(self, message: bytes) -> bytes:
        return self.home.signing_key().sign(message)

    def _ledger(self) -> Ledger:
        """The ledger, begun where there is none yet."""
        key = self.home.signing_key()
        genesis = Genesis(
            public_key=key.public_bytes.hex(),
            unit=self.policy.unit,
            relation=self.policy.relation,
            delta=self.policy.delta,
            epsilon_limit=self.policy.epsilon if self.config.privacy.mode == "dp" else None,
            declared_n=self.policy.declared_n,
            lifetime_claim=self.policy.lifetime_claim,
        )
        return Ledger.open_or_create(self.home.ledger_path, self.site.name, key, genesis)

    def _dither(self, header: Header) -> Callable[[npt.NDArray[np.uint32]], None]:
        if not self.config.insecure_reproducible:
            return system_dither()
        seed = self._noise.derive(f"{self.site.name}/{header.round}/dither").seed()
        return KeyStream(hashlib.sha256(seed.to_bytes(8, "big")).digest()).fill

    @cached_property
    def _records(self) -> Batch:
        return self._load_records(self.federation.model)

    @cached_property
    def _noise(self) -> NoiseSource:
        return ReproducibleNoise(self.config.seed) if self.config.insecure_reproducible else OsNoise()


def _code_of(error: Exception) -> str:
    """The fixed code that an error becomes on the wire."""
    if isinstance(error, SecAggError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal_error")
