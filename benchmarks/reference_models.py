"""What a private step costs at a site with the paper's encoders: CPU seconds and memory, by what of them is trained.

    python benchmarks/reference_models.py [--records 2]

ResNet-50 on 224 x 224 films and BERT-base on 128 tokens, each with the fusion head beside it, from weights drawn at
random and written as torchvision and transformers write theirs. One thread, a process for each row. `prepare` is what
is done once for the life of the data; `step` is one step of DP-SGD over all records, its noise included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

WIDTH = 256
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet50": {"side": 224},
    "bert_base": {"layers": 12, "hidden": 768, "heads": 12, "max_tokens": 128},
}
ROWS = (
    ("resnet50", "all", "hooks"),
    ("resnet50", "all", "ghost"),
    ("resnet50", "head", "hooks"),
    ("bert_base", "all", "hooks"),
    ("bert_base", "all", "ghost"),
    ("bert_base", "adapters", "hooks"),
    ("bert_base", "head", "hooks"),
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "effusion", "edema"]


def write_weights(folder: Path) -> None:
    """Random states of both networks, as public ones lie on disk."""
    import torch
    import torchvision
    import transformers

    torch.save(torchvision.models.resnet50(weights=None).state_dict(), folder / "resnet50.pth")
    bert = folder / "bert_base"
    transformers.BertModel(transformers.BertConfig()).save_pretrained(bert)
    (bert / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")


def measure(
    network: str, train: str, back_end: Literal["hooks", "ghost"], weights: str, count: int
) -> dict[str, float]:
    """One row, in a process of its own."""
    import torch

    from secure_fed.data.records import ModalitySpec, Records, Schema
    from secure_fed.models.config import ModelConfig
    from secure_fed.models.multimodal import build_model
    from secure_fed.privacy.dpsgd import dp_sgd
    from secure_fed.privacy.noise import OsNoise
    from secure_fed.privacy.plan import GaussianPlan, TrainingOptions

    torch.set_num_threads(1)
    kind: Literal["image", "text"] = "image" if network == "resnet50" else "text"
    spec = ModalitySpec(kind, kind, (1, 224, 224) if kind == "image" else ())
    schema = Schema(modalities=(spec,), labels=tuple(f"label {i}" for i in range(14)))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[5:], size=120)) for _ in range(count)]
    values = rng.random((count, 1, 224, 224), dtype=np.float32) if kind == "image" else np.array(texts, dtype=object)
    records = Records(
        schema=schema,
        values={kind: values},
        presence={kind: np.ones(count, dtype=bool)},
        labels=(rng.random((count, 14)) < 0.5).astype(np.float32),
        unit_ids=np.array([f"p{i}" for i in range(count)]),
    )
    encoder = {"name": network, "weights": weights, "train": train, **NETWORKS[network]}
    model = build_model(schema, ModelConfig.model_validate({"feature_width": WIDTH, kind: encoder}), {}, seed=0)
    began = time.process_time()
    batch = model.prepare(records)
    prepared = time.process_time()

    def loss(model: Any, batch: Any) -> torch.Tensor:
        logits = model.classify(model.encode(batch))
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        return losses.sum(dim=1)

    components = (f"encoder.{kind}", "fusion")
    plan = GaussianPlan(
        phase="classify", sample_rate=1.0, steps=1, declared_n=count, max_grad_norm=1.0, noise_multiplier=1.0
    )
    dp_sgd(model, components, loss, batch, plan, TrainingOptions(back_end=back_end), OsNoise())
    stepped = time.process_time()
    return {
        "trained": sum(model.component_sizes().values()),
        "public": sum(model.public_parameters().values()),
        "prepare": (prepared - began) / count,
        "step": stepped - prepared,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2)
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        network, train, back_end, weights = options.row
        print(json.dumps(measure(network, train, back_end, weights, options.records)))
        return
    print(f"{options.records} records, one thread; a round uploads 3 bytes for each trained number")
    head = ("encoder", "train", "back end", "trained", "public", "upload MB", "prepare s/record", "step s", "peak GB")
    print(("{:>10} {:>9} {:>9} {:>12} {:>12} {:>10} {:>17} {:>8} {:>8}").format(*head))
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder))
        for network, train, back_end in ROWS:
            weights = str(Path(folder) / ("resnet50.pth" if network == "resnet50" else "bert_base"))
            command = [sys.executable, __file__, "--records", str(options.records), "--row", network, train, back_end]
            done = subprocess.run([*command, weights], capture_output=True, text=True, check=True)  # noqa: S603
            row = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{network:>10} {train:>9} {back_end:>9} {row['trained']:>12,} {row['public']:>12,} "
                f"{3e-6 * row['trained']:>10.1f} {row['prepare']:>17.2f} {row['step']:>8.1f} {row['memory']:>8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
