"""Runs side by side: what each method scored, what it knows of a missing modality, and what it cost.

Runs that differ by their seed alone are one row. Rows on the same patients under the same privacy are paired by seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secure_fed.errors import ConfigError
from secure_fed.report import formats
from secure_fed.report.assessment import Interval
from secure_fed.report.run_folder import RunFolder, Summary, read_run
from secure_fed.sweep.contrasts import Verdict, verdict
from secure_fed.sweep.differences import flat
from secure_fed.sweep.statistics import Paired, holm, mean_interval, paired

CONFIDENCE = 0.95
BASELINE = "zero_fill"
_MOST_WORDS = 3
"""So many differing settings stand in a row's label; the table of settings has them all."""

# Follow from the seed or from what lies on a disk: they do not tell two settings apart.
_OF_A_RUN = {"seed", "federation.public_set"}
_PATIENTS = (
    "data.",
    "privacy.",
    "federation.sites",
    "federation.ownership",
    "federation.partition",
    "federation.test_fraction",
    "federation.public_fraction",
    "federation.alone",
)
"""What must be the same for a seed to stand for the same patients, sites and guarantee."""


@dataclass(frozen=True)
class View:
    """What a record has at test time; `missing` is the modality that is taken away, None with everything present."""

    missing: str | None

    @property
    def title(self) -> str:
        """`all present`, `no image`."""
        return "all present" if self.missing is None else f"no {self.missing}"

    def auroc(self, summary: Summary) -> float | None:
        """Macro AUROC on the hold-out."""
        return summary.auroc_macro if self.missing is None else summary.auroc_macro_missing.get(self.missing)

    def auprc(self, summary: Summary) -> float | None:
        """Macro AUPRC on the hold-out."""
        return summary.auprc_macro if self.missing is None else summary.auprc_macro_missing.get(self.missing)

    def auroc_interval(self, summary: Summary) -> Interval | None:
        """The run's own interval of it: a bootstrap over the hold-out's patients."""
        found = summary.intervals
        return found.auroc_macro if self.missing is None else found.auroc_macro_missing.get(self.missing)

    def auprc_interval(self, summary: Summary) -> Interval | None:
        """The same of macro AUPRC."""
        found = summary.intervals
        return found.auprc_macro if self.missing is None else found.auprc_macro_missing.get(self.missing)


@dataclass(frozen=True)
class Score:
    """A mean over a row's runs. The interval is Student's over seeds, or of one run its bootstrap over patients."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Group:
    """A row: runs that differ by their seed alone, in the order of their seeds. `patients`: what pairs are made by."""

    label: str
    runs: tuple[RunFolder, ...]
    settings: Mapping[str, str]
    patients: tuple[tuple[str, str], ...]

    @property
    def summaries(self) -> list[Summary]:
        """Of all its runs."""
        return [run.summary for run in self.runs]

    @property
    def first(self) -> Summary:
        """What is alike in all of them may be read from this one."""
        return self.runs[0].summary

    @property
    def seeds(self) -> list[int]:
        """Seeds in order."""
        return [summary.seed for summary in self.summaries]

    @property
    def ownership(self) -> str:
        """As it was configured: `5:1:4`, or `image 5, image+text 2`."""
        prefix = "federation.ownership"
        parts = {key: value for key, value in self.settings.items() if key.startswith(prefix)}
        return ", ".join(f"{key.removeprefix(prefix).lstrip('.')} {value}".strip() for key, value in parts.items())

    @property
    def epsilon_spent(self) -> float | None:
        """The most that a run spent; None where one gives no guarantee."""
        values = [None if s.privacy == "off" or s.insecure_reproducible else s.epsilon_max for s in self.summaries]
        known = [value for value in values if value is not None]
        return max(known) if len(known) == len(values) else None

    def score(self, view: View, kind: str) -> Score | None:
        """`kind` is auroc or auprc; None where no run has the score."""
        found = [value for summary in self.summaries if (value := _value(view, summary, kind)) is not None]
        if not found:
            return None
        if len(found) > 1:
            interval = mean_interval(found, CONFIDENCE)
            return Score(interval.mean, interval.low, interval.high)
        of_run = view.auroc_interval(self.first) if kind == "auroc" else view.auprc_interval(self.first)
        return Score(found[0], *(of_run or (None, None)))

    def by_seed(self, view: View, kind: str) -> dict[int, float]:
        """Seed -> score."""
        scores = {summary.seed: _value(view, summary, kind) for summary in self.summaries}
        return {seed: score for seed, score in scores.items() if score is not None}


def _value(view: View, summary: Summary, kind: str) -> float | None:
    return view.auroc(summary) if kind == "auroc" else view.auprc(summary)


@dataclass(frozen=True)
class Difference:
    """`label - against` over common seeds, in one view. holm_p: Student's p, adjusted for all differences shown."""

    label: str
    against: str
    view: View
    kind: str
    paired: Paired
    holm_p: float | None

    @property
    def verdict(self) -> Verdict:
        """`higher` or `lower` only where the interval leaves out 0."""
        return verdict(self.paired)


@dataclass(frozen=True)
class Setting:
    """A key on which rows disagree: label -> value, absent where the row has none."""

    key: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class RunComparison:
    """What `compare RUN...` found. unpaired: rows that share patients and privacy with no other."""

    groups: tuple[Group, ...]
    views: tuple[View, ...]
    differences: tuple[Difference, ...]
    settings: tuple[Setting, ...]
    unpaired: tuple[str, ...]
    remarks: tuple[str, ...]


def compare_runs(folders: Sequence[Path]) -> RunComparison:
    """Compare finished runs' folders, two at the least.

    Raises DataError on a folder that is no finished run, damaged, or of a version that did not write what is compared;
    ConfigError for fewer than two runs, or one that is given twice.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} run is nothing to compare: give two or more run folders, or two sweeps'")
    places = [folder.resolve() for folder in folders]
    twice = next((folder for number, folder in enumerate(folders) if places[number] in places[:number]), None)
    if twice is not None:
        raise ConfigError(f"{twice} is given twice: name each run once")
    groups = _groups([read_run(folder) for folder in folders])
    views = tuple(View(missing) for missing in _missing(groups))
    differences, paired_labels = _differences(groups, views)
    unpaired = [group for group in groups if group.label not in paired_labels]
    return RunComparison(
        groups=groups,
        views=views,
        differences=differences,
        settings=_settings(groups),
        unpaired=tuple(group.label for group in unpaired),
        remarks=(*_remarks(groups, differences), *_parted(unpaired, groups)),
    )


def _groups(runs: Sequence[RunFolder]) -> tuple[Group, ...]:
    found: defaultdict[tuple[tuple[str, str], ...], list[RunFolder]] = defaultdict(list)
    for run in runs:
        settings = {key: value for key, value in flat(run.settings).items() if key not in _OF_A_RUN}
        found[tuple(sorted(settings.items()))].append(run)
    settings_of = [dict(settings) for settings in found]
    labels = _labels([members[0].summary.method for members in found.values()], settings_of)
    groups = []
    for label, settings, members in zip(labels, settings_of, found.values(), strict=True):
        seeds = [run.summary.seed for run in members]
        if len(set(seeds)) < len(seeds):
            both = [str(run.path) for run in members if seeds.count(run.summary.seed) > 1]
            raise ConfigError(
                f"{' and '.join(both)} are one configuration and seed: their noise alone differs; give one of them"
            )
        ordered = tuple(sorted(members, key=lambda run: run.summary.seed))
        groups.append(Group(label, ordered, settings, _patients(settings)))
    return tuple(groups)


def _patients(settings: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The settings that a pair has in common; without privacy its other options say nothing."""
    kept = {key: value for key, value in settings.items() if key.startswith(_PATIENTS)}
    if kept.get("privacy.mode") == "off":
        kept = {key: value for key, value in kept.items() if not key.startswith("privacy.") or key == "privacy.mode"}
    return tuple(sorted(kept.items()))


def _labels(methods: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The method, and where several rows have one, in what they differ: `fin, ε 3`."""
    labels = []
    for method, own in zip(methods, settings, strict=True):
        alike = [other for name, other in zip(methods, settings, strict=True) if name == method]
        telling = {_short(key): own[key] for key in own if len({other.get(key, "") for other in alike}) > 1}
        off = own.get("privacy.mode") == "off"
        budgets = {(other.get("privacy.mode"), other.get("privacy.epsilon")) for other in alike}
        telling = {name: value for name, value in telling.items() if name not in ("privacy", "epsilon")}
        words = [f"{name} {value}" for name, value in telling.items()]
        if len(budgets) > 1:
            words.insert(0, "without privacy" if off else f"ε {own.get('privacy.epsilon')}")
        if len(words) > _MOST_WORDS:
            words = [*words[:_MOST_WORDS], f"and {len(words) - _MOST_WORDS} more"]
        labels.append(", ".join([method, *words]))
    return [
        label if labels.count(label) == 1 else f"{label} ({number})" for number, label in enumerate(labels, start=1)
    ]


def _short(key: str) -> str:
    """`epsilon` of privacy.epsilon, `privacy` of privacy.mode."""
    parts = key.split(".")
    return parts[-2] if parts[-1] in ("mode", "name") and len(parts) > 1 else parts[-1]


def _missing(groups: Sequence[Group]) -> list[str | None]:
    names = dict.fromkeys(name for group in groups for name in group.first.auroc_macro_missing)
    return [None, *names]


def _differences(groups: Sequence[Group], views: Sequence[View]) -> tuple[tuple[Difference, ...], set[str]]:
    """Every row against the baseline of its patients, which is zero-filling or else the row that was named first."""
    by_patients: defaultdict[tuple[tuple[str, str], ...], list[Group]] = defaultdict(list)
    for group in groups:
        by_patients[group.patients].append(group)
    found: list[tuple[str, str, View, str, Paired]] = []
    labels: set[str] = set()
    for alike in by_patients.values():
        base = next((group for group in alike if group.first.method == BASELINE), alike[0])
        for other in alike:
            for kind in ("auroc", "auprc") if other is not base else ():
                for view in views:
                    result = paired(base.by_seed(view, kind), other.by_seed(view, kind), CONFIDENCE)
                    if result is not None:
                        found.append((other.label, base.label, view, kind, result))
                        labels |= {base.label, other.label}
    adjusted = holm([result.t_p for *_, result in found])
    return tuple(Difference(*item, p) for item, p in zip(found, adjusted, strict=True)), labels


def _settings(groups: Sequence[Group]) -> tuple[Setting, ...]:
    """What differs between rows beside the method and the options that it alone has."""
    keys = sorted({key for group in groups for key in group.settings if _told(key, groups)})
    found = []
    for key in keys:
        values = {group.label: group.settings.get(key, "absent") for group in groups}
        if len(set(values.values())) > 1:
            found.append(Setting(key, values))
    return tuple(found)


def _told(key: str, groups: Sequence[Group]) -> bool:
    """A method's options are told where rows of that method differ in them; the method itself is the label."""
    if not key.startswith("method."):
        return True
    by_method: defaultdict[str, set[str]] = defaultdict(set)
    for group in groups:
        by_method[group.first.method].add(group.settings.get(key, "absent"))
    return any(len(values) > 1 for values in by_method.values())


def _remarks(groups: Sequence[Group], differences: Sequence[Difference]) -> tuple[str, ...]:
    remarks = []
    if any(len(group.runs) == 1 for group in groups):
        remarks.append(
            "The interval of a single run is a bootstrap over the hold-out's patients: it says how much the score "
            "depends on who was held out, and nothing of the noise, the split and the initial weights."
        )
    if any(len(group.runs) > 1 for group in groups):
        remarks.append("The interval of several seeds is Student's over the runs.")
    if differences and max(difference.paired.n for difference in differences) == 1:
        remarks.append("Pairs of one seed have no interval and no test: run more seeds before believing a difference.")
    data = {group.first.data for group in groups}
    if len(data) > 1:
        remarks.append(f"The data differ ({formats.listed(sorted(data))}): scores are not comparable.")
    if any(summary.insecure_reproducible for group in groups for summary in group.summaries):
        remarks.append("insecure_reproducible=true in some of the runs: they give no privacy.")
    return tuple(remarks)


def _parted(unpaired: Sequence[Group], groups: Sequence[Group]) -> tuple[str, ...]:
    """The one setting that keeps a row from being paired, where it is one alone, and the way out."""
    keys = dict.fromkeys(key for row in unpaired for other in groups if (key := _only_difference(row, other)))
    found = []
    for key in keys:
        values = {group.label: group.settings.get(key, "absent") for group in groups}
        told = "; ".join(
            f"{value} in {formats.listed([label for label in values if values[label] == value])}"
            for value in dict.fromkeys(values.values())
        )
        way = "give all of them the same"
        if key == "federation.public_fraction":
            # The fraction decides who is at a site, so a method without a public set needs it for the pair's sake.
            most = max((value for value in values.values() if value != "absent"), key=float)
            way = f"give all of them {key}={most}, also where the method needs no public set: it decides who is where"
        found.append(f"{key} alone keeps rows from being paired ({told}): {way}.")
    return tuple(found)


def _only_difference(row: Group, other: Group) -> str | None:
    """The setting that parts two rows with a common seed, where it is one; None where they are alike or differ more."""
    ours, theirs = dict(row.patients), dict(other.patients)
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return keys[0] if len(keys) == 1 and set(row.seeds) & set(other.seeds) else None
