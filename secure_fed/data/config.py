"""What a data set is told from outside: frozen pydantic models, one for each reader, told apart by `name`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from secure_fed.data.records import MODALITY_NAME


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SyntheticCxrConfig(_Frozen):
    """Chest-film-like images with reports, drawn from the run's seed.

    `studies_per_patient` is a mean (one, plus a Poisson number of follow-ups). `link` in [0, 1) is the
    correlation between what film and report say wrongly: 0 = they err independently, near 1 = the report
    follows the film, its artefacts included.
    """

    name: Literal["synthetic_cxr"] = "synthetic_cxr"
    patients: int = Field(default=4000, ge=1, le=200_000)
    studies_per_patient: float = Field(default=2.0, ge=1.0, le=20.0)
    image_size: int = Field(default=64, ge=32, le=256)
    link: float = Field(default=0.35, ge=0.0, lt=1.0)


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


def value_columns(spec: ImageColumn | TextColumn | TabularColumns) -> tuple[str, ...]:
    """The CSV columns that hold a modality."""
    return tuple(spec.columns) if isinstance(spec, TabularColumns) else (spec.column,)


DataConfig = Annotated[SyntheticCxrConfig | PhysioNet2012Config | ManifestConfig, Field(discriminator="name")]
