"""`model_card.md`: what the model is for, what it was trained on, what it guarantees, and where it ends.

The sections follow Mitchell et al. 2019, "Model cards for model reporting".
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import jinja2

from secure_fed.files import write_whole
from secure_fed.report import assessment, evaluation, formats, wording
from secure_fed.report.budget import read_budget
from secure_fed.report.notices import all_warnings
from secure_fed.report.run_folder import RunFolder, read_run

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def write_model_card(run: Path) -> Path:
    """Write `model_card.md` into a finished run folder and return its path; an old one is replaced whole.

    Raises DataError naming a missing or damaged file, LedgerError where a ledger cannot be trusted.
    """
    folder = read_run(run)
    budget = read_budget(folder)
    text = (
        _templates()
        .get_template("model_card.md.j2")
        .render(
            summary=folder.summary,
            f=formats,
            warnings=all_warnings(folder, budget),
            paragraph=wording.paragraph(folder.summary, folder.steps),
            void=wording.void(folder.summary),
            guarantee=wording.guarantee(folder.summary),
            odds=wording.odds(folder.summary),
            assumptions=wording.assumptions(folder, budget),
            budget=budget,
            training=_training(folder),
            scores=assessment.score_rows(folder.summary),
            score_rules=assessment.rules(folder.summary),
            labels=assessment.label_rows(folder.summary),
            likeness=assessment.likeness_rows(folder.summary),
            likeness_rules=assessment.likeness_rules(folder.summary),
            views=evaluation.view_rows(folder.summary.evaluation),
            evaluation_rules=evaluation.rules(folder.summary.evaluation),
            graph=wording.graph(folder.summary),
            public_set=wording.public_set(folder.summary),
            protection=wording.protection,
        )
    )
    return write_whole(run / "model_card.md", text)


def markdown(value: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def _training(run: RunFolder) -> list[tuple[str, str]]:
    """What was configured, as far as a reader of the card needs it."""
    wanted = {
        "Method": ("method", "name"),
        "Strategy": ("strategy", "name"),
        "Local optimizer": ("training", "optimizer"),
        "Ownership of modalities": ("federation", "ownership"),
        "Partition": ("federation", "partition", "scheme"),
        "Clip norm of a record's gradient": ("privacy", "max_grad_norm"),
        "Sampling rate": ("privacy", "sample_rate"),
    }
    if run.summary.privacy == "off":
        wanted = {name: keys for name, keys in wanted.items() if keys[0] != "privacy"}
    found = [(name, _setting(run, *keys)) for name, keys in wanted.items()]
    return [(name, value) for name, value in found if value is not None]


def _setting(run: RunFolder, *keys: str) -> str | None:
    value: object = run.settings
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    return None if value is None else str(value)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secure_fed.report"),
        autoescape=False,  # noqa: S701 - Markdown: every value goes through `markdown`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown
    return environment
