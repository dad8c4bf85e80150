"""What of a sweep cannot work, found before its first cell runs, with each cause named once.

A cell is tried without its data: its configuration, its members' ownership, floors and masks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from secure_fed.data import schema_of
from secure_fed.data.config import files_of
from secure_fed.data.partition import declared_count
from secure_fed.engines.runner import federation_of
from secure_fed.engines.simulated_sites import made_up_members
from secure_fed.errors import ConfigError, SecureFedError
from secure_fed.federation.config import RunConfig
from secure_fed.federation.evaluation import candidates, view_of
from secure_fed.federation.plan import plan_for
from secure_fed.server.missing_rates import RATES
from secure_fed.sweep.composing import Composer
from secure_fed.sweep.metrics import objectives
from secure_fed.sweep.record import GRID, Scalar

_ABSENT = object()


@dataclass(frozen=True)
class Draft:
    """A cell before it is composed."""

    kind: str
    factors: Mapping[str, Scalar]
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.factors.items())
        return values if self.kind == GRID else f"{self.kind}({values})"


def require_sound(drafts: Sequence[Draft], composer: Composer) -> list[RunConfig]:
    """The configuration of each draft; raises ConfigError with every distinct cause and the cells that share it."""
    failing: dict[str, list[Draft]] = {}
    found: list[RunConfig] = []
    alike: dict[str, list[tuple[Draft, RunConfig]]] = {}
    for draft in drafts:
        try:
            config = composer(draft.overrides)
        except ConfigError as error:
            failing.setdefault(str(error), []).append(draft)
            continue
        found.append(config)
        alike.setdefault(_key(config), []).append((draft, config))
    for group in alike.values():
        fault = _fault(group[0][1])
        if fault is not None:
            failing.setdefault(fault, []).extend(draft for draft, _ in group)
            continue
        for draft, reason in _without_noise(group):
            failing.setdefault(reason, []).append(draft)
    if failing:
        raise ConfigError(_told(failing, drafts))
    return found


def require_unequal(cells: Sequence[tuple[Draft, str]]) -> None:
    """Raise ConfigError where two cells are one configuration, naming both."""
    first: dict[str, Draft] = {}
    for draft, identity in cells:
        other = first.setdefault(identity, draft)
        if other is draft:
            continue
        differ = [name for name, value in draft.factors.items() if other.factors.get(name) != value]
        if draft.kind != other.kind:
            way_out = f"leave the reference out with ~sweep.references.{draft.kind}"
        elif not differ:  # 1 and 1.0
            way_out = "one value is named twice, in two ways: name it once"
        else:
            way_out = f"give {' and '.join(differ)} one value each: nothing else depends on it there"
        raise ConfigError(f"two cells are the same configuration: {other} and {draft}; {way_out}")


def require_objective(objective: str, configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError where cells will not have the metric that they are ranked by: a sweep without a picture."""
    by_scores = {f"{c.data.model_dump_json()}{c.evaluation.model_dump_json()}": c for c in configs}
    for config in by_scores.values():
        known = _objectives(config)
        if objective not in known:
            near = difflib.get_close_matches(objective, known, n=2, cutoff=0.5)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise ConfigError(
                f"sweep.objective={objective} is no score of data={config.data.name} with "
                f"evaluation={config.evaluation.name}; {meant}known: {', '.join(known)}"
            )


def _objectives(config: RunConfig) -> list[str]:
    """The scores by which cells can be ranked, by the names that `collect` gives them."""
    schema, views = schema_of(config.data), []
    if config.evaluation.name == "federated":
        owned = [site.owned for site in made_up_members(config)]
        views = [view_of(name) for name in candidates(config.evaluation, schema, owned)]
    return objectives(schema, views, RATES)


def _key(config: RunConfig) -> str:
    """All but the seed and epsilon, which do not decide whether a federation can work."""
    alike = {"seed": 0, "privacy": config.privacy.model_copy(update={"epsilon": 1.0})}
    return config.model_copy(update=alike).model_dump_json()


def _fault(config: RunConfig) -> str | None:
    """Why this cell could not run, or None."""
    if config.engine.name != "in_process":
        return (
            f"engine={config.engine.name}: the cells of a sweep run in worker processes of their own; leave it out, or "
            "give launcher=ray for a cluster"
        )
    for key, path in files_of(config.data).items():
        if not path.exists():
            return f"{key}={path} does not exist"
    if config.privacy.mode == "dp" and config.privacy.delta >= 1 / declared_count(0):
        return (
            f"privacy.delta={config.privacy.delta:g} is far from below 1/N for the N that sites declare: such a delta "
            "allows releasing a whole record; give one below 1/N, such as 1e-5"
        )
    try:
        federation_of(config, made_up_members(config))
    except SecureFedError as error:
        return str(error)
    return None


def _without_noise(group: Sequence[tuple[Draft, RunConfig]]) -> Iterator[tuple[Draft, str]]:
    """Cells of a group that differs in seed and epsilon only, whose epsilon no noise reaches, each with the reason."""
    if group[0][1].privacy.mode == "off":
        return
    for target in sorted({config.privacy.epsilon for _, config in group}):
        same = [(draft, config) for draft, config in group if config.privacy.epsilon == target]
        federation = federation_of(same[0][1], made_up_members(same[0][1]))
        kinds = {site.owned: site for site in federation.sites}
        try:
            for site in kinds.values():
                plan_for(federation, site)
        except ConfigError as error:
            yield from ((draft, str(error)) for draft, _ in same)
        else:
            return  # a larger epsilon needs less noise


def _told(failing: Mapping[str, Sequence[Draft]], everything: Sequence[Draft]) -> str:
    broken = sum(len(drafts) for drafts in failing.values())
    count = len(everything)
    lines = [
        f"{reason} ({len(drafts)} of {count} cells{_shared(drafts, everything)}){_way_out(drafts, everything)}"
        for reason, drafts in failing.items()
    ]
    if len(lines) == 1:
        return lines[0]
    return "\n".join([f"{broken} of {count} cells cannot run:", *(f"- {line}" for line in lines)])


def _shared(failing: Sequence[Draft], everything: Sequence[Draft]) -> str:
    """What all of the failing cells have in common that others have not."""
    if len(failing) == len(everything):
        return ""
    common = dict(failing[0].factors)
    for draft in failing:
        common = {name: value for name, value in common.items() if draft.factors.get(name, _ABSENT) == value}
    kinds = {draft.kind for draft in failing}
    alike = [draft for draft in everything if draft.kind in kinds]
    telling = [
        f"{name}={value}"
        for name, value in common.items()
        if any(draft.factors.get(name, _ABSENT) != value for draft in alike)
    ]
    if len(kinds) == 1 and any(draft.kind not in kinds for draft in everything) and (kinds != {GRID} or not telling):
        telling.insert(0, f"kind {kinds.pop()}")
    return f", all with {' and '.join(telling)}" if telling else f", {failing[0]} among them"


def _way_out(failing: Sequence[Draft], everything: Sequence[Draft]) -> str:
    """A reference that fails as a whole can be left out."""
    kinds = {draft.kind for draft in failing}
    if len(kinds) > 1 or kinds == {GRID} or len(failing) < sum(draft.kind in kinds for draft in everything):
        return ""
    return f"; ~sweep.references.{kinds.pop()} leaves this reference out"
