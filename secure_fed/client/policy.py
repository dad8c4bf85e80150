"""The site owner's policy: what this site may spend and take part in, whatever a server asks.

Read from `policy.yaml` in the site's home; nothing that arrives in a message can loosen it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secure_fed.errors import ConfigError, PolicyRefusal
from secure_fed.federation.facts import Federation


class Policy(BaseModel):
    """A site's own rules. `declared_n` is the public count that rates, weights and delta stand on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    unit: Literal["record"]
    relation: Literal["add_or_remove_one"]
    declared_n: int = Field(ge=1)
    min_cohort: int = Field(ge=1)
    min_contributors: int = Field(ge=1)
    max_corrupt: int = Field(ge=0)
    allowed_methods: tuple[str, ...]
    lifetime_claim: bool
    compliance: bool


def load_policy(path: Path) -> Policy:
    """Read a policy strictly; raises ConfigError naming the file and every wrong key or value."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Policy.model_validate(tree)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: a site takes part in nothing without its owner's policy") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}={item.get('input')!r}: {item['msg']}" for item in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from error


def save_policy(path: Path, policy: Policy) -> None:
    """Write a policy as YAML."""
    path.write_text(yaml.safe_dump(policy.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def admit(policy: Policy, federation: Federation) -> None:
    """Refuse a run that the policy does not allow; raises PolicyRefusal with the reason, and charges nothing."""
    config = federation.config
    site = federation.site(policy.site)
    if "any" not in policy.allowed_methods and config.method.name not in policy.allowed_methods:
        raise PolicyRefusal(
            f"{policy.site}: policy allows the methods {', '.join(policy.allowed_methods)}, not {config.method.name}"
        )
    if site.declared_n != policy.declared_n:
        raise PolicyRefusal(f"{policy.site}: the roster declares N={site.declared_n}, the policy N={policy.declared_n}")
    if policy.compliance and (weak := config.weaknesses()):
        raise PolicyRefusal(
            f"{policy.site}: {' and '.join(weak)} is refused in compliance mode, which no switch turns off"
        )
    if config.privacy.mode == "dp" and config.privacy.delta > policy.delta:
        raise PolicyRefusal(
            f"{policy.site}: privacy.delta={config.privacy.delta:g} is above the policy's {policy.delta:g}"
        )
    if config.secagg.mode == "off":
        return
    if len(federation.sites) < policy.min_cohort:
        raise PolicyRefusal(
            f"{policy.site}: a cohort of {len(federation.sites)} is below the policy's min_cohort={policy.min_cohort}"
        )
    if config.federation.corrupt < policy.max_corrupt or federation.floor() < policy.min_contributors:
        raise PolicyRefusal(
            f"{policy.site}: the run tolerates {config.federation.corrupt} corrupt sites with a floor of "
            f"{federation.floor()} contributors; the policy wants {policy.max_corrupt} and {policy.min_contributors}"
        )
