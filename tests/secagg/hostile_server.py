"""A server gone bad, with corrupt members, against honest clients: seeded, and it keeps all that it ever saw.

`World.play` attacks; `World.judge`, in `fuzz_judge`, computes what the server can open from everything that it holds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from fuzz_judge import Broken, Judge
from secagg_federation import BASIS, MODEL, STAGES, identities, make_context, random_vectors

from secure_fed.errors import SecAggError
from secure_fed.secagg import ClientSession, Levels, SessionContext, Stage, keys
from secure_fed.secagg.client_state import ClientState
from secure_fed.secagg.encoding import encode
from secure_fed.secagg.masking import Mask
from secure_fed.secagg.messages import (
    Advertise,
    Advertisements,
    Confirm,
    Confirmations,
    Masked,
    Message,
    Release,
    ShareBundle,
    ShareDelivery,
    Survivors,
)
from secure_fed.secagg.session import survivors_statement

OTHER_MODEL = bytes(range(32))
REQUESTS: dict[Stage, type[Message]] = {
    Stage.SHARE: Advertisements,
    Stage.MASK: ShareDelivery,
    Stage.CONFIRM: Survivors,
    Stage.UNMASK: Confirmations,
}
RATES = (0.0, 0.0, 0.02, 0.1, 0.3)
"""How often a request is spoiled; with 0 the server is honest, and so are the members."""
SESSIONS = ({"round_": 0}, {"round_": 1, "attempt": 1}, {"round_": 2, "attempt": 2}, {"run": "other", "round_": 1})
"""An old one, the one under way, the prepared next one, and another run of the same members."""


@dataclass
class Session:
    """What the server knows of one session, and the story that it tells there.

    Attributes:
        split: the stage from which on two groups of honest members are told two stories, if any.
        side: honest member -> its group; corrupt members are in both.
        victims: whom the second group is told to have dropped out.
        views: an honest member's own state after it dealt and after it masked, for the judge.
        mask_keys: derived key -> who used it, for what and with which sign.
    """

    context: SessionContext
    vectors: dict[str, dict[str, np.ndarray]]
    split: Stage | None
    side: dict[str, int]
    victims: set[str]
    stage: int = 0
    advertised: dict[str, bytes] = field(default_factory=dict)
    bundles: list[ShareBundle] = field(default_factory=list)
    masked: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    sids: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, tuple[str, ...]] = field(default_factory=dict)
    signed: dict[str, bytes] = field(default_factory=dict)
    releases: list[tuple[str, Release]] = field(default_factory=list)
    views: dict[str, ClientState] = field(default_factory=dict)
    mask_keys: dict[bytes, list[tuple[str, str, bool]]] = field(default_factory=dict)

    def is_told(self, name: str, about: str, stage: Stage) -> bool:
        """Whether `name` is told that `about` takes part in a stage."""
        if self.split is None or STAGES.index(stage) < STAGES.index(self.split) or name == about:
            return True
        if stage is Stage.CONFIRM:
            return self.side.get(name) != 1 or about not in self.victims
        return self.side.get(about) in {None, self.side.get(name)}


class World(Judge):
    """One seeded run over several sessions of the same members, some of them corrupt.

    `make` makes the contexts, `client` the honest members' sessions: a naive world has others.
    """

    def __init__(self, seed: int, make: Callable[..., SessionContext] = make_context, client=ClientSession) -> None:
        self.rng = rng = random.Random(seed)
        self.rate, self.kind = rng.choice(RATES), client
        count = rng.randint(3, 6)
        corrupt = rng.randint(0, min(2, count - 2))
        owners = set(rng.sample(range(count), rng.randint(corrupt + 2, count)))
        layout = {"image": (5, owners), "fusion": (4, set(range(count)))}
        self.names = sorted(identities(count))
        self.corrupt = set(rng.sample(self.names, corrupt))
        self.honest = [name for name in self.names if name not in self.corrupt]
        self.signers = {name: key.sign for name, key in identities(count).items()}
        chosen = rng.sample(SESSIONS, rng.choice((1, 2)))
        contexts = [make(count, corrupt, layout, **kind) for kind in chosen]
        self.sessions = [self.session(context, seed + place) for place, context in enumerate(contexts)]
        self.stored = {
            (place, name, Stage.ADVERTISE): ClientSession(context, name, self.signers[name]).to_bytes()
            for place, context in enumerate(contexts)
            for name in self.names
        }
        self.known: dict[bytes, bytes] = {}  # public key -> private key, of corrupt members and inventions
        self.sent: dict[type[Message], list[bytes]] = {kind: [] for kind in REQUESTS.values()}
        self.aborts: Counter[tuple[Stage, str]] = Counter()
        self.opened: list[frozenset[str]] = []

    def session(self, context: SessionContext, seed: int) -> Session:
        rng = self.rng
        split = rng.choice([None, Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.CONFIRM]) if self.rate else None
        side = {name: rng.randint(0, 1) for name in self.honest}
        victims = set(rng.sample([name for name in self.honest if not side[name]] or self.honest, 1))
        return Session(context, random_vectors(context, seed), split, side, victims)

    # -- attacking -------------------------------------------------------------------------------------

    def bad(self, often: float = 1.0) -> bool:
        return self.rng.random() < self.rate * often

    def play(self) -> None:
        """Go through the sessions in a random interleaving, a stage at a time."""
        under_way = list(range(len(self.sessions)))
        while under_way:
            place = self.rng.choice(under_way)
            stage = STAGES[self.sessions[place].stage]
            for name in self.rng.sample(self.names, len(self.names)):
                if self.rate and self.rng.random() < 0.04:
                    continue  # drops out
                self.approach(place, name, stage)
                if self.bad(0.5):  # once more, or out of order
                    self.approach(place, name, self.rng.choice([stage, *STAGES]))
            self.sessions[place].stage += 1
            if self.sessions[place].stage == len(STAGES):
                under_way.remove(place)

    def approach(self, place: int, name: str, stage: Stage) -> None:
        """Send one member the request of a stage, as its story has it or worse, and take what comes."""
        sides = (0, 1) if name in self.corrupt else (self.sessions[place].side[name],)
        for side in sides:  # a corrupt member plays along in both stories
            self.sessions[place].side[name] = side
            request = self.request(self.sessions[place], name, stage)
            if request is not None:
                self.ask(place, name, stage, request)
        if name in self.corrupt:
            del self.sessions[place].side[name]

    def request(self, session: Session, name: str, stage: Stage) -> bytes | None:
        if stage is Stage.ADVERTISE:
            return b""
        due = self.due(session, name, stage)
        if due is None:
            return None
        raw = self.spoiled(due, session, name) if self.bad() else due.to_bytes()
        self.sent[REQUESTS[stage]].append(raw)
        return raw

    def due(self, session: Session, name: str, stage: Stage) -> Message | None:
        """What an honest server would send if this member's story were true; None where it has nothing to say."""
        context = session.context
        if stage is Stage.SHARE:
            listed = {n: raw for n, raw in session.advertised.items() if session.is_told(name, n, stage)}
            return Advertisements(tuple(raw for _, raw in sorted(listed.items())))
        if stage is Stage.MASK:
            own = [bundle.u1_hash for bundle in session.bundles if bundle.sender == name][-1:]
            dealt = {b.sender: b.sealed for b in session.bundles if [b.u1_hash] == own}
            u2 = tuple(sorted(n for n in dealt if session.is_told(name, n, stage)))
            return ShareDelivery(context.kid, u2, {n: dealt[n][name] for n in u2 if name in dealt[n]})
        sid = session.sids.get(name)
        if stage is Stage.CONFIRM and sid is not None:
            alive = [n for n in session.masked if session.sids[n] == sid or n in self.corrupt]
            return Survivors(sid, tuple(sorted(n for n in alive if session.is_told(name, n, stage))))
        if stage is Stage.UNMASK and name in session.told and sid is not None:
            listed = session.told[name]
            theirs = {n: s for n, s in session.signed.items() if (session.sids[n], session.told[n]) == (sid, listed)}
            mine = {n: self.signers[n](survivors_statement(sid, listed)) for n in self.corrupt & set(listed)}
            return Confirmations(sid, theirs | mine)
        return None

    def ask(self, place: int, name: str, stage: Stage, request: bytes) -> None:
        session = self.sessions[place]
        before = self.before(place, name, stage)
        kind = ClientSession if name in self.corrupt else self.kind
        client = kind.from_bytes(self.stored[before], session.context, name, self.signers[name])
        slices: Mapping[str, np.ndarray] = {}
        try:
            if stage is Stage.ADVERTISE:
                reply = client.advertise(OTHER_MODEL if self.bad(0.1) else BASIS)
            elif stage is Stage.MASK:
                masks = client._masks
                client._masks = lambda owned: self.noted(session, name, masks(owned))
                bits = session.context.params.value_bits
                sources = {part: Levels(values, bits) for part, values in session.vectors[name].items()}
                masked = client.mask(request, sources, OTHER_MODEL if self.bad(0.1) else MODEL)
                reply, slices = masked.message, masked.slices
            else:
                steps = {Stage.SHARE: client.share, Stage.CONFIRM: client.confirm, Stage.UNMASK: client.unmask}
                reply = steps[stage](request)
        except SecAggError as error:
            self.check_error(self.stored[before], error)
            if name in self.honest:
                self.aborts[stage, error.code] += 1
                self.stored[before] = client.to_bytes()
            return
        after = (place, name, STAGES[min(STAGES.index(stage) + 1, 4)])
        self.stored[after if name in self.corrupt else before] = client.to_bytes()
        self.take(session, name, stage, reply, slices, client)

    def before(self, place: int, name: str, stage: Stage) -> tuple[int, str, Stage]:
        """Where the state that answers this is kept: one for an honest member, one a stage for a corrupt one."""
        if name in self.honest:
            return place, name, Stage.ADVERTISE
        reached = [known for known in STAGES[: STAGES.index(stage) + 1] if (place, name, known) in self.stored]
        return place, name, reached[-1]

    def noted(self, session: Session, name: str, masks: dict[str, list[Mask]]) -> dict[str, list[Mask]]:
        if name in self.honest:
            for component, used in masks.items():
                for mask in used:
                    session.mask_keys.setdefault(mask.key, []).append((name, component, mask.adds))
        return masks

    def take(
        self,
        session: Session,
        name: str,
        stage: Stage,
        reply: bytes,
        slices: Mapping[str, np.ndarray],
        client: ClientSession,
    ) -> None:
        """Keep what a member sent; of a corrupt one also its private keys. An honest one sends each thing once."""
        sent = (session.advertised, {bundle.sender for bundle in session.bundles}, session.masked, session.signed)
        if name in self.honest and any(name in known for known in sent[STAGES.index(stage) : STAGES.index(stage) + 1]):
            raise Broken(f"{name} answered {stage} twice")
        state = ClientState.from_bytes(client.to_bytes())
        if stage is Stage.ADVERTISE:
            session.advertised[name] = reply
            if name in self.corrupt:
                self.known |= {keys.public_of(key): key for key in (state.cipher_private, state.mask_private)}
        elif stage is Stage.SHARE:
            session.bundles.append(ShareBundle.from_bytes(reply))
            session.views[name] = state
        elif stage is Stage.MASK:
            session.masked[name], session.sids[name] = slices, Masked.from_bytes(reply).sid
            session.views[name] = state
        elif stage is Stage.CONFIRM:
            session.told[name], session.signed[name] = client.survivors, Confirm.from_bytes(reply).signature
        elif name in self.honest:
            session.releases.append((name, Release.from_bytes(reply)))

    # -- spoiling --------------------------------------------------------------------------------------

    def spoiled(self, due: Message, session: Session, name: str) -> bytes:
        """The request, replayed, spliced, reordered, relabelled, forged or broken."""
        rng, kind = self.rng, type(due)
        others, how = self.sent[kind], rng.randrange(6)
        if how == 0 and others:
            return rng.choice(others)  # of another member, round or run
        if how == 1 and others:
            part = rng.choice(fields(kind)).name
            try:
                donor = kind.from_bytes(rng.choice(others))
            except SecAggError:
                return due.to_bytes()[:-1]
            return replace(due, **{part: getattr(donor, part)}).to_bytes()
        if how == 2 and isinstance(due, Advertisements):
            return self.with_inventions(session, name)
        if how <= 4:
            part = rng.choice([f.name for f in fields(kind) if not isinstance(getattr(due, f.name), bytes)])
            return replace(due, **{part: self.shaken(getattr(due, part))}).to_bytes()
        raw = due.to_bytes()
        place = rng.randrange(len(raw))
        flipped = raw[:place] + bytes([raw[place] ^ rng.randint(1, 255)]) + raw[place + 1 :]
        return rng.choice([flipped, raw[:place], raw + raw[:place], b"", encode("wire/advertise", [1])])

    def shaken(self, value: Any) -> Any:
        """A list or mapping with entries left out, doubled, exchanged, in another order, or of strangers."""
        rng = self.rng
        if isinstance(value, Mapping):
            names, items = list(value), list(value.values())
            how = rng.randrange(3) if names else 3
            if how == 0:
                return {name: value[name] for name in rng.sample(names, rng.randint(0, len(names)))}
            if how == 1:
                return dict(zip(names, rng.sample(items, len(items)), strict=True))
            return {**value, rng.choice([*self.names, "stranger"]): rng.choice([*items, b""])}
        items = list(value)
        how = rng.randrange(4) if items else 4
        if how == 0:
            return tuple(sorted(rng.sample(items, rng.randint(1, len(items)))))
        if how == 1:
            rng.shuffle(items)
        elif how == 2:
            items[rng.randrange(len(items))] = rng.choice(items)
        elif how == 3:
            items = sorted([*items, rng.choice(self.names) if isinstance(items[0], str) else items[0]])
        return tuple(items)

    def with_inventions(self, session: Session, told: str) -> bytes:
        """Some others' keys replaced by the server's own: signed anew by a corrupt one, else with what there is."""
        listed = dict(session.advertised)
        others = sorted(listed.keys() - {told})
        for name in self.rng.sample(others, self.rng.randint(0, len(others))):
            privates = {part: keys.fresh_secret() for part in ("cipher_key", "mask_key")}
            public = {part: keys.public_of(private) for part, private in privates.items()}
            self.known |= {public[part]: private for part, private in privates.items()}
            draft = replace(Advertise.from_bytes(listed[name]), **public)
            if name in self.corrupt:
                draft = replace(draft, signature=self.signers[name](draft.statement()))
            listed[name] = draft.to_bytes()
        return Advertisements(tuple(raw for _, raw in sorted(listed.items()))).to_bytes()
