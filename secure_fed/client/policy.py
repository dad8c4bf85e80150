"""The site owner's policy: what this site may spend and take part in, whatever a server asks.

Read from `policy.yaml` in the site's home; nothing that arrives in a message can loosen it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from secure_fed.errors import ConfigError, PolicyRefusal
from secure_fed.federation.config import PrivacyConfig
from secure_fed.federation.facts import Federation, Site
from secure_fed.files import write_whole
from secure_fed.identity import SiteName

_EDIT = "or its owner edits policy.yaml"


class Policy(BaseModel):
    """A site's own rules, all of them required; a run may only be stricter.

    Its values are at least every `min_` and at most every `max_`.

    Attributes:
        data_set: whose records these are; a home serves one data set, so that its budget is that of the data's life.
        epsilon, delta: what all runs together may cost, over the whole life of the data. The ledger's first record
            fixes both: `epsilon` may be lowered afterwards, and never be raised.
        unit: what is added or removed: one `record`, or one `patient` with all of his records.
        max_records_per_unit: most records of a patient that are used; 1 where the unit is the record.
        declared_n: the public number of units that rates, weights and the check on delta stand on.
        max_rounds_a_day: most rounds that are charged in any 24 hours, over all runs.
        allowed_components: what the site may train and measure; `any` stands for all.
        approved_plans: hashes of the runs that the owner has approved (`secure-fed plan` prints them); null asks for
            none.
        max_parameters: largest model, in parameters.
        max_clip: widest range that a coordinate of the update may take, `secagg.clip`.
        max_value_bits: most bits of one contribution in the ring, `secagg.value_bits`.
        min_corrupt: how many colluding sites the masks must withstand, `federation.corrupt`.
        min_threshold: fewest sites whose shares and signatures open a sum.
        min_cohort: fewest sites with which a round goes on.
        min_contributors: fewest contributors in an opened sum of what this site owns.
        dp_only: component -> lowest floor of it that the owner consents to; below the default floor differential
            privacy alone protects the site's update of it.
        allow_graph: who may mask with whom; k_regular stands against a semi-malicious server only.
        allow_unverified_server_step: whether the site takes models whose server step it cannot recompute.
        compliance: whether every switch that weakens the guarantee is refused, whatever else is allowed here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: SiteName
    data_set: str = Field(min_length=1, max_length=128)
    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1)
    unit: Literal["record", "patient"]
    max_records_per_unit: int = Field(ge=1)
    relation: Literal["add_or_remove_one"]
    declared_n: int = Field(ge=1)
    max_rounds_a_day: int = Field(ge=1)
    max_parameters: int = Field(ge=1)
    max_clip: float = Field(gt=0, allow_inf_nan=False)
    max_value_bits: int = Field(ge=8, le=31)
    min_corrupt: int = Field(ge=0)
    min_threshold: int = Field(ge=1)
    min_cohort: int = Field(ge=1)
    min_contributors: int = Field(ge=1)
    dp_only: dict[str, Annotated[int, Field(ge=1)]]
    allowed_methods: tuple[str, ...]
    allowed_components: tuple[str, ...]
    approved_plans: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] | None
    allow_graph: tuple[Literal["complete", "k_regular"], ...]
    allow_unverified_server_step: bool
    lifetime_claim: bool
    compliance: bool

    @model_validator(mode="after")
    def _promise_means_something(self) -> Policy:
        if self.delta >= 1 / self.declared_n:
            raise ValueError(
                f"delta={self.delta:g} is not below 1/declared_n={1 / self.declared_n:.2g}: such a delta allows "
                f"publishing one whole {self.unit}; give one well below, such as {0.01 / self.declared_n:.0e}"
            )
        if self.unit == "record" and self.max_records_per_unit != 1:
            raise ValueError(f"max_records_per_unit={self.max_records_per_unit} with unit: record; that is 1")
        return self


def load_policy(path: Path) -> Policy:
    """Read a policy strictly; raises ConfigError naming the file and every wrong key or value."""
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: a site takes part in nothing without its owner's policy") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(map(_problem, error.errors()))}") from error


@lru_cache(maxsize=64)  # read before every round, and an owner edits it once in a while
def _parsed(text: str) -> Policy:
    return Policy.model_validate(yaml.safe_load(text))


def _problem(item: ErrorDetails) -> str:
    """One wrong key or value of a policy in words, with the key that was probably meant."""
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Policy.model_fields, n=1)
        return f"unknown key {key!r}{f', did you mean {near[0]}?' if near else ''}"
    if item["type"] == "missing":
        return f"{key} is missing; every rule has to be written down"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}={item.get('input')!r}: {message}" if key else message


def save_policy(path: Path, policy: Policy) -> None:
    """Write a policy as YAML, whole or not at all."""
    write_whole(path, yaml.safe_dump(policy.model_dump(mode="json"), sort_keys=False))


def admit(policy: Policy, federation: Federation) -> None:
    """Refuse a run that the policy does not allow; raises PolicyRefusal with every reason, and charges nothing."""
    site = federation.site(policy.site)
    objections = [*_to_the_run(policy, federation, site)]
    if federation.config.secagg.mode == "on":
        objections += [*_to_the_masks(policy, federation), *_to_the_floors(policy, federation, site)]
    if objections:
        raise PolicyRefusal(f"{policy.site}: {'; '.join(objections)}")


def _to_the_run(policy: Policy, federation: Federation, site: Site) -> Iterator[str]:
    """What holds with and without masks."""
    config = federation.config
    if policy.compliance and (weak := config.weaknesses()):
        yield f"{' and '.join(weak)} is refused in compliance mode, which no switch turns off: run without it"
    if "any" not in policy.allowed_methods and config.method.name not in policy.allowed_methods:
        yield from _not_among("allowed_methods", policy.allowed_methods, f"method={config.method.name}")
    if policy.lifetime_claim and config.insecure_reproducible:
        yield (
            "insecure_reproducible=true protects nothing, and this home's lifetime_claim=true says what all uses of "
            f"its data cost: {_way('insecure_reproducible=false')}"
        )
    if site.declared_n != policy.declared_n:
        yield (
            f"the roster declares N={site.declared_n}, the policy declared_n={policy.declared_n}: the consortium signs "
            f"a roster with the owner's number, {_EDIT}"
        )
    if policy.data_set != federation.data_set:
        yield (
            f"this home belongs to data_set={policy.data_set}, and the run trains on {federation.data_set}: a budget "
            "is that of one data set's life; run with that home's data, or make a home for these"
        )
    if config.privacy.mode == "dp":
        yield from _to_the_guarantee(policy, config.privacy)
    if policy.approved_plans is not None and (plan := federation.plan_hash()) not in policy.approved_plans:
        yield (
            f"the run's plan {plan} is not among the policy's approved_plans: `secure-fed plan` shows what it would "
            "release; an owner who agrees adds the hash to policy.yaml"
        )
    yield from _to_the_components(policy, federation, site)
    size = sum(federation.model.component_sizes().values())
    yield from _most("max_parameters", policy.max_parameters, "the model's number of parameters", size)
    if config.server_step == "unverified" and not policy.allow_unverified_server_step:
        yield (
            "the policy has allow_unverified_server_step=false, and no site can recompute the server's step under "
            f"strategy={config.strategy.name} with secagg={config.secagg.mode}: "
            f"{_way('secagg=on and strategy=fedavg, fedadam or fedyogi')}"
        )


def _to_the_guarantee(policy: Policy, privacy: PrivacyConfig) -> Iterator[str]:
    """A home counts in one unit and at one delta: an epsilon in another cannot be added to its sum."""
    asked = {
        "unit": (policy.unit, "privacy.unit", privacy.unit),
        "max_records_per_unit": (
            policy.max_records_per_unit,
            "the most records of a unit (privacy.max_records_per_patient, or 1)",
            privacy.max_records_per_unit,
        ),
        "delta": (policy.delta, "privacy.delta", privacy.delta),
    }
    for key, (own, what, value) in asked.items():
        if own != value:
            yield f"{what} is {value}, and this home counts with {key}={own}: {_way('that')}"


def _to_the_components(policy: Policy, federation: Federation, site: Site) -> Iterator[str]:
    if "any" in policy.allowed_components:
        return
    uploads = {name for phase in federation.phases_of(site) for name in phase.uploads()}
    trained = {name for name in uploads if federation.contributes(site, name)}
    strange = sorted(trained - set(policy.allowed_components))
    if strange:
        yield (
            f"the run trains {', '.join(strange)} here, and the policy's allowed_components are "
            f"{', '.join(policy.allowed_components) or 'none'}: {_way('a method that does not')}"
        )


def _to_the_masks(policy: Policy, federation: Federation) -> Iterator[str]:
    config = federation.config
    yield from _most("max_clip", policy.max_clip, "secagg.clip", config.secagg.clip)
    yield from _most("max_value_bits", policy.max_value_bits, "secagg.value_bits", config.secagg.value_bits)
    yield from _least("min_corrupt", policy.min_corrupt, "federation.corrupt", config.federation.corrupt)
    wider = "(raised by federation.corrupt or more sites)"
    yield from _least("min_threshold", policy.min_threshold, f"the threshold {wider}", federation.threshold)
    wider = "(raised by secagg.min_cohort)"
    yield from _least("min_cohort", policy.min_cohort, f"the fewest sites of a round {wider}", federation.min_cohort)
    if config.secagg.graph not in policy.allow_graph:
        yield from _not_among("allow_graph", policy.allow_graph, f"secagg.graph={config.secagg.graph}")


def _to_the_floors(policy: Policy, federation: Federation, site: Site) -> Iterator[str]:
    """A lower floor needs the consent of every owner of the component; of what it does not own it needs none."""
    floors = {name: federation.floor(name) for name in federation.slice_names if site.name in federation.owners(name)}
    unasked = {name: floor for name, floor in floors.items() if name in federation.dp_only - policy.dp_only.keys()}
    if unasked:
        yield (
            f"secagg.floors has {_listed(unasked)}, below the default of {federation.default_floor}, and the policy's "
            f"dp_only does not name that: run without it, {_EDIT} if DP alone is to protect its update there"
        )
    least = {name: policy.dp_only.get(name, policy.min_contributors) for name in floors}
    below = {name: floor for name, floor in floors.items() if floor < least[name] and name not in unasked}
    if below:
        wanted = _listed({name: least[name] for name in below})
        yield (
            f"the floors {_listed(below)} are below the policy's {wanted} (its dp_only, else min_contributors="
            f"{policy.min_contributors}): run with a higher federation.min_contributors and without secagg.floors for "
            f"them, {_EDIT}"
        )


def _listed(floors: Mapping[str, int]) -> str:
    return ", ".join(f"{name}:{floor}" for name, floor in floors.items())


def _least(key: str, least: float, what: str, value: float) -> Iterator[str]:
    if value < least:
        yield f"{what} is {value}, below the policy's {key}={least}: {_way('at least that')}"


def _most(key: str, most: float, what: str, value: float) -> Iterator[str]:
    if value > most:
        yield f"{what} is {value}, above the policy's {key}={most}: {_way('at most that')}"


def _not_among(key: str, allowed: tuple[str, ...], what: str) -> Iterator[str]:
    yield f"the policy's {key} says {', '.join(allowed) or 'none'}, and the run has {what}: {_way('one of those')}"


def _way(run: str) -> str:
    return f"run with {run}, {_EDIT}"
