"""What a hostile server can open from everything that it holds, and whether it may: the fuzzer's properties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from secure_fed.errors import SecAggError
from secure_fed.secagg import Code, keys, masking, shamir
from secure_fed.secagg.accumulator import Accumulator
from secure_fed.secagg.client_state import ClientState
from secure_fed.secagg.encoding import encode
from secure_fed.secagg.messages import Advertise, Dealt, ReleasedShares
from secure_fed.secagg.session import MASK_KEY, seed_name

if TYPE_CHECKING:
    from hostile_server import Session


class Broken(AssertionError):
    """A property does not hold."""


class Judge:
    """Looks at the sessions of a `World`; `known` maps public keys to the private ones that the server has."""

    sessions: list[Session]
    honest: list[str]
    corrupt: set[str]
    known: dict[bytes, bytes]
    opened: list[frozenset[str]]

    def check_error(self, before: bytes, error: SecAggError) -> None:
        if error.code not in set(Code):
            raise Broken(f"{error.code!r} is no fixed code")
        state = ClientState.from_bytes(before)
        secrets = [state.cipher_private, state.mask_private, *state.seeds.values()]
        if any(secret and (secret.hex() in str(error) or repr(secret)[2:-1] in str(error)) for secret in secrets):
            raise Broken("an error's text holds a secret")

    def judge(self) -> None:
        """Raise `Broken` unless the server can open nothing but sums that the floors allow, and those rightly."""
        for session in self.sessions:
            self.check_releases(session)
            shares = self.shares(session)
            secrets = {
                key: value for key, held in shares.items() if (value := self.combined(session, held)) is not None
            }
            for name in self.honest:
                kinds = {what for dealer, what in secrets if dealer == name}
                if MASK_KEY in kinds and len(kinds) > 1:
                    raise Broken(f"the server holds both kinds of secrets of {name}")
            for component in session.context.schema.by_name:
                self.check_component(session, component, secrets)

    def check_releases(self, session: Session) -> None:
        senders = [name for name, _ in session.releases]
        if len(senders) != len(set(senders)):
            raise Broken("a client released twice")
        for used in session.mask_keys.values():
            names, components, signs = (set(values) for values in zip(*used, strict=True))
            if len(components) > 1 or not len(used) == len(names) == len(signs):
                raise Broken(f"one derived key served {used}")
        for name, release in session.releases:
            for dealer, raw in release.released.items():
                opened = set(ReleasedShares.from_bytes(raw).shares)
                if MASK_KEY in opened and len(opened) > 1:
                    raise Broken(f"{name} released both kinds of secrets of {dealer}")

    def shares(self, session: Session) -> dict[tuple[str, str], dict[str, bytes]]:
        """(dealer, secret) -> holder -> share: what was released, and what was sealed to a key the server knows."""
        found: dict[tuple[str, str], dict[str, bytes]] = {}
        for holder, release in session.releases:
            for dealer, raw in release.released.items():
                for what, share in ReleasedShares.from_bytes(raw).shares.items():
                    found.setdefault((dealer, what), {})[holder] = share
        for bundle in session.bundles:
            if bundle.sender in self.corrupt:
                continue
            view = session.views[bundle.sender]
            for holder, sealed in bundle.sealed.items():
                private = self.known.get(Advertise.from_bytes(view.peers[holder]).cipher_key)
                if private is None:
                    continue
                own = Advertise.from_bytes(session.advertised[bundle.sender]).cipher_key
                key = keys.derive(keys.agree(private, own), "share", view.kid, [bundle.sender, holder])
                associated = encode("sealed-share", [view.kid, bundle.sender, holder, bundle.u1_hash])
                dealt = Dealt.from_bytes(keys.unseal(key, sealed, associated))
                for what, share in dealt.shares.items():
                    found.setdefault((bundle.sender, what), {})[holder] = share
        return found

    def combined(self, session: Session, held: Mapping[str, bytes]) -> bytes | None:
        points = {session.context.point(holder): int.from_bytes(share, "big") for holder, share in held.items()}
        try:
            return shamir.combine(points, session.context.params.share_threshold)
        except SecAggError:
            return None

    def check_component(self, session: Session, component: str, secrets: Mapping[tuple[str, str], bytes]) -> None:
        """The smallest groups of honest contributors whose masks all come off: their sum is what the server learns."""
        spec = session.context.schema.by_name[component]
        owners = [name for name in self.honest if name in spec.owners and name in session.masked]
        unknown = {name: self.unknown_peers(session, name, component, secrets) for name in owners}
        seeded = {name for name in owners if (name, seed_name(component)) in secrets}
        left = set(owners)
        while left:
            group, edge = set(), {left.pop()}
            while edge:
                name = edge.pop()
                group.add(name)
                edge |= {peer for peer in unknown.get(name, ()) if peer not in group}
            left -= group
            same = {session.sids.get(name) for name in group}
            if group <= seeded and len(same) == 1:
                self.check_opened(session, component, group, unknown, secrets)

    def unknown_peers(
        self, session: Session, name: str, component: str, secrets: Mapping[tuple[str, str], bytes]
    ) -> set[str]:
        """The peers whose pairwise masks with `name` the server cannot compute."""
        return {
            peer
            for peer in self.peers(session, name, component)
            if self.pair_secret(session, name, peer, secrets) is None
        }

    def peers(self, session: Session, name: str, component: str) -> set[str]:
        view, spec = session.views[name], session.context.schema.by_name[component]
        return set(session.context.mask_graph(view.u1_hash, spec).neighbours(name) & set(view.u2))

    def pair_secret(
        self, session: Session, name: str, peer: str, secrets: Mapping[tuple[str, str], bytes]
    ) -> bytes | None:
        theirs = Advertise.from_bytes(session.views[name].peers[peer]).mask_key
        own = Advertise.from_bytes(session.advertised[name]).mask_key
        if theirs in self.known:
            return keys.agree(self.known[theirs], own)
        if (name, MASK_KEY) in secrets:
            return keys.agree(secrets[name, MASK_KEY], theirs)
        mine = secrets.get((peer, MASK_KEY))
        return keys.agree(mine, own) if mine is not None and keys.public_of(mine) == theirs else None

    def check_opened(
        self,
        session: Session,
        component: str,
        group: set[str],
        unknown: Mapping[str, set[str]],
        secrets: Mapping[tuple[str, str], bytes],
    ) -> None:
        """Open the group's sum with what the server has, compare it, and ask whether that was allowed."""
        context, spec = session.context, session.context.schema.by_name[component]
        total = Accumulator(spec.size, context.params.wire_bits)
        masks = []
        for name in group:
            sid = session.sids[name]
            total.add(session.masked[name][component])
            masks.append(masking.self_mask(secrets[name, seed_name(component)], sid, name, component))
            for peer in self.peers(session, name, component) - unknown[name]:
                shared = self.pair_secret(session, name, peer, secrets)
                assert shared is not None
                masks.append(masking.pair_mask(shared, sid, name, peer, component))
        total.remove(masks)
        values, counted = total.finish()
        plain = sum(session.vectors[name][component].view(np.int32).astype(np.int64) for name in group)
        if counted != len(group) or not (values == plain).all():
            raise Broken(f"the sum of {sorted(group)} opens to something else")
        corrupt_owners = len(spec.owners & self.corrupt)
        if len(group) < context.params.floor(component) - corrupt_owners or len(group) < 2:
            raise Broken(f"{component}: the sum of {sorted(group)} alone can be opened")
        self.opened.append(frozenset(group))
