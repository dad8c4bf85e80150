"""What a data set is told from outside: frozen pydantic models, one for each reader, told apart by `name`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from secure_fed.data.records import MODALITY_NAME


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SyntheticCxrConfig(_Frozen):
    """Chest-film-like images with reports, drawn from the run's seed.

    `studies_per_patient` is a mean (one, plus a Poisson number of follow-ups). `link` in [0, 1) is the
    correlation between what film and report say wrongly: 0 = they err independently, near 1 = the report
    follows the film, its artefacts included. The last two make another population: `prevalence_shift` moves
    every finding's threshold (in standard deviations; above 0 = sicker), `exposure` all grey values.
    """

    name: Literal["synthetic_cxr"] = "synthetic_cxr"
    patients: int = Field(default=4000, ge=1, le=200_000)
    studies_per_patient: float = Field(default=2.0, ge=1.0, le=20.0)
    image_size: int = Field(default=64, ge=32, le=256)
    link: float = Field(default=0.35, ge=0.0, lt=1.0)
    prevalence_shift: float = Field(default=0.0, ge=-1.5, le=1.5)
    exposure: float = Field(default=0.0, ge=-0.3, le=0.3)


class PhysioNet2012Config(_Frozen):
    """PhysioNet / CinC Challenge 2012, set A: `root` is the released folder, or its set-a.tar.gz."""

    name: Literal["physionet2012"] = "physionet2012"
    root: Path


class ImageColumn(_Frozen):
    """A column of image paths, relative to the CSV; read as grey and resized to height x width."""

    kind: Literal["image"] = "image"
    column: str
    height: int = Field(default=64, ge=8, le=1024)
    width: int = Field(default=64, ge=8, le=1024)


class TextColumn(_Frozen):
    """A column of texts, or with `file` of paths of UTF-8 text files, relative to the CSV."""

    kind: Literal["text"] = "text"
    column: str
    file: bool = False


class TabularColumns(_Frozen):
    """Numeric columns with their declared public ranges [lo, hi], mapped to [-1, 1] and clipped.

    With `observed_indicators` each column is followed by a feature that is 1 where its cell is filled.
    """

    kind: Literal["tabular"] = "tabular"
    columns: dict[str, tuple[float, float]] = Field(min_length=1)
    observed_indicators: bool = True

    @model_validator(mode="after")
    def _ranges_are_intervals(self) -> TabularColumns:
        for column, (lo, hi) in self.columns.items():
            if not (abs(lo) < float("inf") and abs(hi) < float("inf") and lo < hi):
                raise ValueError(f"range of {column!r} is [{lo}, {hi}]: expected two finite numbers lo < hi")
        return self


ModalityColumns = Annotated[ImageColumn | TextColumn | TabularColumns, Field(discriminator="kind")]


class ManifestConfig(_Frozen):
    """One's own data: a CSV with one row a record.

    `id` names the column of unique record ids, `unit` the one of patient ids (the privacy unit: no patient
    on two sides), `site` an optional column of natural sites. An empty cell is a missing modality or label.
    """

    name: Literal["manifest"] = "manifest"
    path: Path
    id: str = "id"
    unit: str = "patient"
    site: str | None = None
    modalities: dict[str, ModalityColumns] = Field(min_length=1)
    labels: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _columns_have_one_meaning(self) -> ManifestConfig:
        for name in self.modalities:
            if not MODALITY_NAME.fullmatch(name):
                raise ValueError(f"modality name {name!r} is not of the form [a-z][a-z0-9_]*")
        used = [column for spec in self.modalities.values() for column in value_columns(spec)]
        used += [*self.labels, self.id]
        twice = sorted({column for column in used if used.count(column) > 1})
        if twice:
            raise ValueError(f"columns used for two things: {', '.join(twice)}; give each its own column")
        # A patient id or a label among the features would be a leak that looks like accuracy.
        for column in (self.unit, self.site):
            if column != self.id and column in used:
                raise ValueError(f"column {column!r} is the unit or site, and also a feature or a label")
        return self


View = Literal["pa", "ap", "frontal", "lateral", "unknown"]
"""How a film was taken; `frontal` where nobody says whether PA or AP, `unknown` where nothing is said."""

LabelValue = Literal["zeros", "ones", "ignore"]
"""What a label becomes that the set calls uncertain or leaves blank; `ignore`: unknown, not trained or scored."""


class RadiologyConfig(_Frozen):
    """What the readers of chest film sets have in common.

    `views`: wanted ones, the first best; a study without one is left out. `records`: one a study (its first image),
    or one an image. `sections`: of the report, in this order; none for films alone. `max_records`: a public cap; whole
    patients in the order of a hash of their ids. `split=official`: the set's own test side becomes the hold-out.
    `missing_files=skip` leaves out images that are not on disk instead of refusing the set.
    """

    root: Path | None = None
    image_size: int = Field(default=64, ge=16, le=1024)
    views: tuple[View, ...] = Field(default=("pa", "ap", "frontal"), min_length=1)
    records: Literal["study", "image"] = "study"
    sections: tuple[Literal["indication", "comparison", "findings", "impression"], ...] = ("findings", "impression")
    uncertain: LabelValue = "ignore"
    blank: LabelValue = "zeros"
    split: Literal["patient", "official"] = "patient"
    max_records: int | None = Field(default=None, ge=1)
    missing_files: Literal["error", "skip"] = "error"

    @field_validator("views", "sections")
    @classmethod
    def _nothing_named_twice(cls, chosen: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(chosen)) != len(chosen):
            raise ValueError("one is named twice: name each once")
        return chosen


class MimicCxrConfig(RadiologyConfig):
    """MIMIC-CXR-JPG in `root`; the reports of MIMIC-CXR in `reports`, or in `root` too where that is null."""

    name: Literal["mimic_cxr"] = "mimic_cxr"
    reports: Path | None = None
    labeller: Literal["chexpert", "negbio"] = "chexpert"


class OpenIConfig(RadiologyConfig):
    """Open-I's chest films in `root`: ecgen-radiology/*.xml with PNGs, or the two CSVs with PNGs.

    `images` is the folder of PNGs; null looks where the archives put it. The XML names no view, so `unknown` is wanted
    too unless `views` says otherwise: of such a study the first image by name counts.
    """

    name: Literal["open_i"] = "open_i"
    views: tuple[View, ...] = Field(default=("pa", "ap", "frontal", "unknown"), min_length=1)
    images: Path | None = None
    split: Literal["patient"] = "patient"


class ChexpertConfig(RadiologyConfig):
    """CheXpert in `root`, the folder that holds train.csv and valid.csv (or that folder's parent). No reports."""

    name: Literal["chexpert"] = "chexpert"


class CompositeSource(_Frozen):
    """A set, or what is drawn in its place where it is a real one whose `root` is null."""

    data: PartConfig
    stand_in: SyntheticCxrConfig | None = None

    @property
    def lacks_root(self) -> bool:
        """Whether the set is a real one that nobody gave a folder for."""
        return isinstance(self.data, RadiologyConfig) and self.data.root is None

    @property
    def source(self) -> PartConfig:
        """What is really read or drawn."""
        return self.stand_in if self.lacks_root and self.stand_in is not None else self.data


class CompositePart(CompositeSource):
    """Some sites that hold records of one set, and the modalities that they own (null: all)."""

    sites: int = Field(ge=1)
    modalities: tuple[str, ...] | None = Field(default=None, min_length=1)


class CompositeConfig(_Frozen):
    """Sites that come from different sets: the parts by name, in order of site numbers, and the hold-out.

    The coordinator's public hold-out is all records of its set, or with split=official that set's own test side.
    Either every part with a real set is given its root, or none: real and made-up patients are never mixed unnoticed.
    """

    name: Literal["composite"] = "composite"
    parts: dict[str, CompositePart] = Field(min_length=1)
    holdout: CompositeSource

    @property
    def sources(self) -> dict[str, CompositeSource]:
        """All sets, by their keys below `data`."""
        return {**{f"parts.{name}": part for name, part in self.parts.items()}, "holdout": self.holdout}

    @model_validator(mode="after")
    def _roots_are_given_for_all_or_none(self) -> CompositeConfig:
        real = {key: one for key, one in self.sources.items() if isinstance(one.data, RadiologyConfig)}
        without = [key for key, one in real.items() if one.lacks_root]
        if without and len(without) < len(real):
            raise ValueError(
                f"data.{without[0]}.data.root is null and others are not: give every root, or none for the stand-ins"
            )
        for key in without:
            if real[key].stand_in is None:
                raise ValueError(f"data.{key}.data.root is null and there is no stand_in: give one of them")
        return self

    @model_validator(mode="after")
    def _no_patient_is_on_two_sides(self) -> CompositeConfig:
        used: list[tuple[str, Path, CompositeSource]] = []
        for key, one in self.sources.items():
            path = next(iter(files_of(one.source).values()), None)
            if path is None:
                continue
            for first, before, other in used:
                official = all(isinstance(c.data, RadiologyConfig) and c.data.split == "official" for c in (one, other))
                if _is_one_set(path, one, before, other) and not (key == "holdout" and official):
                    raise ValueError(
                        f"data.{first} and data.{key} both read {path}: a patient would be on two sides; give each "
                        "its own set, or, for a part and the hold-out, split=official to both"
                    )
            used.append((key, path, one))
        return self


def _is_one_set(path: Path, one: CompositeSource, before: Path, other: CompositeSource) -> bool:
    """Whether two places are the same one, by whatever way, or a set's folder and its parent, which are read alike."""
    places = path.resolve(), before.resolve()
    nested = places[0] in places[1].parents or places[1] in places[0].parents
    return places[0] == places[1] or (nested and one.source.name == other.source.name)


def files_of(config: DataConfig) -> dict[str, Path]:
    """Where a data set lies on disk, by the key that says so; what is made up lies nowhere."""
    if isinstance(config, CompositeConfig):
        return {
            f"data.{place}.{key}": path
            for place, one in config.sources.items()
            for key, path in files_of(one.source).items()
        }
    if isinstance(config, SyntheticCxrConfig):
        return {}
    if isinstance(config, ManifestConfig):
        return {"data.path": config.path}
    return {} if config.root is None else {"data.root": config.root}


def value_columns(spec: ImageColumn | TextColumn | TabularColumns) -> tuple[str, ...]:
    """The CSV columns that hold a modality."""
    return tuple(spec.columns) if isinstance(spec, TabularColumns) else (spec.column,)


PartConfig = Annotated[
    SyntheticCxrConfig | MimicCxrConfig | OpenIConfig | ChexpertConfig | PhysioNet2012Config | ManifestConfig,
    Field(discriminator="name"),
]
DataConfig = Annotated[
    SyntheticCxrConfig
    | MimicCxrConfig
    | OpenIConfig
    | ChexpertConfig
    | PhysioNet2012Config
    | ManifestConfig
    | CompositeConfig,
    Field(discriminator="name"),
]
CompositeSource.model_rebuild()
CompositePart.model_rebuild()
CompositeConfig.model_rebuild()
