"""Naive variants of our own code, each without one rule, and what a server computes from what it was sent."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from secagg_federation import Federation, random_vectors

from secure_fed.errors import SecAggError
from secure_fed.secagg import ClientSession, Code, SessionContext, Stage, keys, masking, shamir
from secure_fed.secagg.accumulator import Accumulator
from secure_fed.secagg.encoding import digest
from secure_fed.secagg.messages import Advertise, Confirm, Confirmations, Masked, Release, ReleasedShares, Survivors
from secure_fed.secagg.session import MASK_KEY, seed_name

VICTIM = "site01"


def small(context: SessionContext, kind: type[Federation] = Federation) -> Federation:
    return kind(context, random_vectors(context, 3))


def with_rules(context: SessionContext, kind: type[SessionContext]) -> SessionContext:
    """The same context under other rules."""
    return kind(**{field.name: getattr(context, field.name) for field in dataclasses.fields(context)})


class Loot:
    """What a server holds at the end, and what it can compute from that."""

    def __init__(self, federation: Federation, releases: Iterable[bytes] = ()) -> None:
        self.context = federation.context
        self.advertised = {n: Advertise.from_bytes(a) for n, a in federation.server._advertisements.items()}
        self.masked = {n: r for stage, n, r in federation.received if stage is Stage.MASK}
        self.shares: dict[tuple[str, str], dict[str, bytes]] = {}
        for raw in releases:
            release = Release.from_bytes(raw)
            for dealer, item in release.released.items():
                self.take(release.sender, dealer, ReleasedShares.from_bytes(item).shares)

    def take(self, holder: str, dealer: str, shares: dict[str, bytes]) -> None:
        for name, share in shares.items():
            self.shares.setdefault((dealer, name), {})[holder] = share

    def secret(self, dealer: str, name: str) -> bytes:
        """Raises below_threshold with too few shares."""
        held = self.shares.get((dealer, name), {})
        points = {self.context.point(holder): int.from_bytes(share, "big") for holder, share in held.items()}
        return shamir.combine(points, self.context.params.share_threshold)

    def agreed(self, victim: str, peer: str) -> bytes:
        """What the two have agreed on, by the masking key of either."""
        for owner, other in ((victim, peer), (peer, victim)):
            with contextlib.suppress(SecAggError):
                return keys.agree(self.secret(owner, MASK_KEY), self.advertised[other].mask_key)
        raise SecAggError(Code.BELOW_THRESHOLD, f"masking keys of {victim} and {peer}")

    def vector(self, victim: str = VICTIM, component: str = "fusion") -> np.ndarray:
        """The victim's levels, int32; raises below_threshold where a secret is missing."""
        spec = self.context.schema.by_name[component]
        reply = self.masked[victim]
        sid = Masked.from_bytes(reply.message).sid
        peers = sorted(spec.owners & self.advertised.keys() - {victim})
        masks = [masking.self_mask(self.secret(victim, seed_name(component)), sid, victim, component)]
        masks += [masking.pair_mask(self.agreed(victim, peer), sid, victim, peer, component) for peer in peers]
        one = Accumulator(spec.size, self.context.params.wire_bits)
        one.add(reply.slices[component])
        one.remove(masks)
        values, count = one.finish()
        assert count == 1, "not all masks are off"
        return values


def plain(federation: Federation, component: str = "fusion") -> np.ndarray:
    return federation.vectors[VICTIM][component].view(np.int32)


def released(federation: Federation, names: Iterable[str], survivors: Callable[[str], tuple[str, ...]]) -> list[bytes]:
    """Tell each of `names` its own list of survivors, give it every signature over that list, take its shares."""
    sid, names = federation.server._sid, list(names)
    signed: dict[tuple[str, ...], dict[str, bytes]] = {}
    for name in names:
        listed = survivors(name)
        reply = federation.answer(name, Stage.CONFIRM, Survivors(sid, listed).to_bytes())
        signed.setdefault(listed, {})[name] = Confirm.from_bytes(reply).signature
    confirmations = {name: Confirmations(sid, signed[survivors(name)]).to_bytes() for name in names}
    return [federation.answer(name, Stage.UNMASK, confirmations[name]) for name in names]


def without(members: Iterable[str], *gone: str) -> tuple[str, ...]:
    return tuple(member for member in members if member not in gone)


# What is missing


class CountsEntries(SessionContext):
    """Naive: counts the entries of a list, whoever they are, and asks for nobody's signature."""

    def check_cohort(self, members):
        assert len(members) >= self.params.quorum

    def check_confirmations(self, sid, survivors, signatures):
        assert len(tuple(survivors)) >= self.params.threshold


class Obedient(SessionContext):
    """Naive: the semi-honest variant. Whoever the server names has survived, however few they are."""

    def check_cohort(self, members):
        pass

    def check_confirmations(self, sid, survivors, signatures):
        pass

    def is_open(self, component, survivors):
        return True


class ObedientClient(ClientSession):
    def confirm(self, message):
        with self._step(Stage.CONFIRM, Stage.UNMASK) as state:
            state.u3 = Survivors.from_bytes(message).survivors
            return Confirm(state.me, state.sid, bytes(64)).to_bytes()


class ObedientFederation(Federation):
    def client(self, name):
        return ObedientClient.from_bytes(self.stored[name], self.context, name, self.signers[name])


class FloorOfTheCohort(SessionContext):
    """Naive: what holds for the cohort is taken to hold for each of its components."""

    def _check_owners(self, spec):
        pass

    def is_open(self, component, survivors):
        return True


class FloorBeforeTheDropOut(SessionContext):
    """Naive: a component's floor is checked against who dealt shares, before the vectors come."""

    def release_plan(self, u2, u3):
        survivors = set(u3)
        openable = {spec.name for spec in self.schema.components if self.is_open(spec, u2)}
        plan = {}
        for dealer in sorted(u2):
            owned = [spec.name for spec in self.schema.owned_by(dealer) if spec.name in openable]
            plan[dealer] = tuple(map(seed_name, owned)) if dealer in survivors else (MASK_KEY,)
        return {dealer: names for dealer, names in plan.items() if names}


class AnyModel(SessionContext):
    """Naive: the session does not say which model it is about."""

    def sid(self, u1_hash, u2, model_hash):
        return super().sid(u1_hash, u2, bytes(32))


class Timeless(SessionContext):
    """Naive: no round in the session's id."""

    @property
    def kid(self):
        return digest("kid", ["always the same"])


class LongTermKeys(ClientSession):
    """Naive: one key pair for shares for ever, and nothing of the session in what is sealed."""

    def advertise(self, basis, notice=b""):
        draft = Advertise.from_bytes(super().advertise(basis, notice))
        state = self._state
        state.cipher_private = hashlib.sha256(state.me.encode()).digest()
        draft = dataclasses.replace(draft, cipher_key=keys.public_of(state.cipher_private))
        state.own = dataclasses.replace(draft, signature=self._sign(draft.statement())).to_bytes()
        return state.own

    def _associated(self, dealer, holder):
        return b""


class TimelessFederation(Federation):
    def client(self, name):
        return LongTermKeys.from_bytes(self.stored[name], self.context, name, self.signers[name])
