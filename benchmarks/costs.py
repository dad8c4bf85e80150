"""What imputing costs at the paper's sizes: parameters and bytes that a site sends in a round, FLOPs of a record.

    python benchmarks/costs.py                  # about a minute of one core, and 3 GiB of memory
    python benchmarks/costs.py --json FILE      # also for scripts/results.py --costs FILE

FIN (arXiv 2505.20232): translators of 6 layers, 4 heads, 1024 feed-forward, width 256, 10 memory tokens, between
features of width 256 of a ResNet-50 and a BERT-base. Generative (R2Gen, arXiv 2010.16056): ResNet-101, d_model 512,
3 layers, 8 heads, beams of 3, 60 tokens. Weights are random: neither size nor FLOPs depend on them. Nothing trains.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from secure_fed.config import compose_config, freeze
from secure_fed.data import Records, load
from secure_fed.engines.simulated_sites import made_up_members
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation
from secure_fed.federation.masking import secagg_params
from secure_fed.methods.base import GradientPhase
from secure_fed.models.batch import Batch
from secure_fed.models.report_generator import ReportGenerator
from secure_fed.report import formats
from secure_fed.secagg import packed_bytes

SCHEMA = "secure_fed.costs/1"
SIZES = (
    "data.image_size=224",
    "data.patients=20",
    "model/image=resnet50",
    "model/text=bert_base",
    "model/translator=transformer",
    "model.feature_width=256",
    "model.feature_scale=1",
    "model.translator.depth=6",
    "model.translator.heads=4",
    "model.translator.feed_forward=1024",
    "model.translator.width=256",
    "model.translator.memory_tokens=10",
    "federation=paper_8_0_2",
)
PAIR = ("image", "text")
"""What both methods impute: the report of a site that has films alone."""


@dataclass(frozen=True)
class Row:
    """One way to impute the text of a film: what a site with both sends for it in a round that trains it.

    flops_imputation: from the film's feature, or for a generator with eyes of its own from the film, to the text's
    feature. flops_writing: of these, what writes the report.
    """

    method: str
    component: str
    parameters_per_round: int
    bytes_up_per_site_round: int
    wire_bits: int
    flops_imputation: int
    flops_writing: int


def configured(method: str) -> RunConfig:
    """The configuration of a run at the paper's sizes."""
    with tempfile.TemporaryDirectory() as folder:
        return freeze(compose_config([*SIZES, f"method={method}"]), Path(folder) / "run")


def counted(run: Callable[[], object]) -> int:
    """The FLOPs of a call as torch counts them: two for a multiply-add, nothing for what is elementwise."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def sent(federation: Federation, component: str) -> tuple[int, int, int]:
    """(parameters, bytes, bits a value on the wire) that a site sends in a round that trains `component` alone."""
    bits = secagg_params(federation).wire_bits
    size = federation.model.component_sizes()[component]
    # One value more: the contributors are counted in the same sum.
    return size, packed_bytes(size + 1, bits), bits


def fin(records: Records) -> tuple[Row, Row, dict[str, int]]:
    """FIN's translator image -> text; both directions, as a site with both sends them; and what all methods share."""
    config = configured("fin")
    federation = Federation(config, made_up_members(config))
    model = federation.model.eval()
    record = model.prepare(records)
    names = [f"translator.{source}_to_{target}" for source, target in (PAIR, PAIR[::-1])]
    lacking = record.without({"text"})
    with torch.no_grad():
        features = model.encode(lacking)
    flops = counted(lambda: model.translate(*PAIR, features["image"]))
    rows = []
    for title, parts in (("fin, image to text", names[:1]), ("fin, both directions", names)):
        sizes = [sent(federation, name) for name in parts]
        rows.append(
            Row(title, " and ".join(parts), sum(s[0] for s in sizes), sum(s[1] for s in sizes), sizes[0][2], flops, 0)
        )
    shared = {name: size for name, size in model.component_sizes().items() if name not in names}
    shared["FLOPs of both encoders"] = counted(lambda: model.encode(record))
    return rows[0], rows[1], shared


def generative(records: Records) -> Row:
    """The generator's longest report, and the text encoder that reads it."""
    config = configured("generative_paper")
    federation = Federation(config, made_up_members(config))
    model = federation.model.eval()
    component = "generator.image_to_text"
    trained = [p.components for p in federation.phases if isinstance(p, GradientPhase) and component in p.components]
    if trained != [(component,)]:
        raise SystemExit(f"{component} is not trained in a phase of its own: {trained}")
    generator = model.part(component)
    if not isinstance(generator, ReportGenerator):
        raise SystemExit(f"{component} is a {type(generator).__name__}, not a report generator")
    record = model.prepare(records)
    image = record.inputs["image"]
    if not isinstance(image, torch.Tensor):
        raise SystemExit("the films of the synthetic data are kept in memory")
    writing = counted(lambda: generator.generate(image, full_length=True))
    reading = counted(lambda: model.encode(text_alone(record)))
    size, up, bits = sent(federation, component)
    return Row("generative, image to text", component, size, up, bits, writing + reading, writing)


def text_alone(record: Batch) -> Batch:
    """The same record as somebody reads it who has the report alone."""
    return record.without({"image"})


def main() -> None:
    """Measure both and print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    torch.manual_seed(0)
    records = load(configured("fin").data, 0).records.select([0])
    one, both, shared = fin(records)
    other = generative(records)
    print_table([one, both, other], shared)
    ratios = {
        "communication": other.bytes_up_per_site_round / one.bytes_up_per_site_round,
        "communication_both_directions": other.bytes_up_per_site_round / both.bytes_up_per_site_round,
        "computation": other.flops_imputation / one.flops_imputation,
        "computation_writing_alone": other.flops_writing / one.flops_imputation,
    }
    print(
        f"\ngenerative : fin, image to text: {ratios['communication']:.1f} in bytes (aim 10), "
        f"{ratios['computation']:,.0f} in FLOPs (aim 1,000), {ratios['computation_writing_alone']:,.0f} without "
        f"reading the report; against both of FIN's directions {ratios['communication_both_directions']:.1f} in bytes"
    )
    if given.json is not None:
        rows = [asdict(row) for row in (one, both, other)]
        document = {"schema": SCHEMA, "sizes": list(SIZES), "rows": rows, "shared": shared, "ratios": ratios}
        given.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def print_table(rows: list[Row], shared: dict[str, int]) -> None:
    """Markdown, as the other benchmarks print."""
    print("| imputing | parameters a round | bytes up, a site and round | bits a value | FLOPs an imputation |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        cells = (
            row.method,
            formats.count(row.parameters_per_round),
            formats.size(row.bytes_up_per_site_round),
            str(row.wire_bits),
            formats.large(row.flops_imputation),
        )
        print(f"| {' | '.join(cells)} |")
    alike = ", ".join(f"{name} {formats.large(size)}" for name, size in shared.items())
    print(f"\nbeside that, alike in every method: {alike}")


if __name__ == "__main__":
    main()
