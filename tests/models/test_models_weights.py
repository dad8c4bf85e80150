"""Public weights from local files: read without running their code, and refused with what was found and expected."""

from __future__ import annotations

import hashlib
import json
import subprocess

import numpy as np
import pytest
import torch
from public_checkpoints import bert_folder, resnet_state
from safetensors.torch import load_file, save, save_file

from secure_fed.errors import ConfigError
from secure_fed.models.bert import bert_encoder
from secure_fed.models.config import BertConfig, ModelConfig, ResNetConfig
from secure_fed.models.convolutional import resnet_encoder
from secure_fed.models.pinning import pinned


def resnet(path, name="resnet18", **config):
    return resnet_encoder(ResNetConfig(name=name, weights=path, **config), 8, 3.0)


def bert(path, **config):
    return bert_encoder(BertConfig(weights=path, max_tokens=8, **config), 8, 3.0)


@pytest.fixture(scope="module")
def state():
    return resnet_state()


class Hostile:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("train", ["all", "head"])
def test_a_resnet_is_the_same_from_safetensors_and_from_torchs_own_files(state, tmp_path, suffix, train):
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    encoder = resnet(path, train=train)
    raw = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    network = encoder.resnet if train == "all" else None
    if network is not None:
        assert torch.equal(network.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    reference = tmp_path / "reference.safetensors"
    save_file(state, reference)
    same = resnet(reference, train=train)
    same.load_state_dict(encoder.state_dict())
    assert torch.equal(same(same.prepare(raw)), encoder(encoder.prepare(raw)))


def missing(path, _state):
    return path.with_name("nowhere.pth")


def a_folder(path, _state):
    path.mkdir()
    return path


def of_another_kind(path, _state):
    path = path.with_suffix(".h5")
    path.write_bytes(b"HDF")
    return path


def cut_short(path, state):
    path.write_bytes(save(state)[:-1000])
    return path


def cut_short_zip(path, state):
    path = path.with_suffix(".pth")
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def no_zip(path, _state):
    path = path.with_suffix(".pt")
    path.write_bytes(b"something else")
    return path


def git_pointer(path, _state):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    return path


def with_code(path, state):
    path = path.with_suffix(".pth")
    torch.save({**state, "extra": Hostile()}, path)
    return path


def whole_module(path, _state):
    path = path.with_suffix(".pth")
    torch.save(torch.nn.Linear(2, 2), path)
    return path


def training_checkpoint(path, state):
    path = path.with_suffix(".pth")
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def one_tensor(path, _state):
    path = path.with_suffix(".pth")
    torch.save(torch.zeros(3), path)
    return path


def not_finite(path, state):
    save_file({**state, "conv1.weight": torch.full_like(state["conv1.weight"], torch.nan)}, path)
    return path


def one_channel(path, state):
    save_file({**state, "conv1.weight": state["conv1.weight"][:, :1].contiguous()}, path)
    return path


def whole_numbers(path, state):
    save_file({**state, "conv1.weight": state["conv1.weight"].to(torch.int8)}, path)
    return path


def data_parallel(path, state):
    save_file({f"module.{name}": value for name, value in state.items()}, path)
    return path


def names_of_transformers(path, state):
    save_file({f"resnet.embedder.{name}": value for name, value in state.items()}, path)
    return path


def a_berts(path, _state):
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(4, 2)}, path)
    return path


def half_of_the_statistics(path, state):
    save_file({name: value for name, value in state.items() if "running_var" not in name}, path)
    return path


WRONG_RESNETS = {
    missing: r"nowhere\.pth: missing",
    a_folder: "found a folder, expected a file",
    of_another_kind: r"found a file \.h5, expected \.safetensors",
    cut_short: "cut short",
    cut_short_zip: "cut short",
    no_zip: "no PyTorch file",
    git_pointer: "Git LFS pointer",
    with_code: r"holds \S*print, expected tensors alone",
    whole_module: r"holds torch\.nn\S*Linear, expected tensors alone",
    training_checkpoint: r"found 'epoch', 'state_dict', expected name -> tensor",
    one_tensor: "found a Tensor",
    not_finite: r"'conv1\.weight'.*not finite",
    one_channel: r"conv1\.weight \[64, 1, 7, 7\] float32 instead of \[64, 3, 7, 7\]",
    whole_numbers: r"conv1\.weight \[64, 3, 7, 7\] int8 instead of",
    data_parallel: r"DataParallel.*expected torchvision's resnet18.*missing 'bn1\.bias'",
    names_of_transformers: r"transformers' names",
    a_berts: r"looks like a BERT's",
    half_of_the_statistics: r"missing 'bn1\.running_var'",
}


@pytest.mark.parametrize("train", ["all", "head"])
@pytest.mark.parametrize("spoil", WRONG_RESNETS, ids=lambda spoil: spoil.__name__)
def test_a_wrong_resnet_file_is_refused_by_name_with_what_was_found_and_expected(state, tmp_path, capsys, spoil, train):
    path = spoil(tmp_path / "weights.safetensors", state)
    with pytest.raises(ConfigError, match=WRONG_RESNETS[spoil]) as refused:
        resnet(path, train=train)
    assert str(refused.value).startswith(f"model.image.weights={path}: ")
    assert "weights_only=False" not in str(refused.value)  # torch's own advice, which would run the file's code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("train", ["all", "head"])
def test_the_weights_of_another_resnet_are_refused(state, tmp_path, train):
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"another depth or block.*expected torchvision's resnet50.*'layer1"):
        resnet(tmp_path / "weights.safetensors", "resnet50", train=train)


@pytest.mark.parametrize("pickled", [False, True])
def test_bert_is_read_from_a_folder_or_from_its_file_of_tensors(tmp_path, pickled):
    folder = bert_folder(tmp_path / "bert", pickled=pickled)
    name = "pytorch_model.bin" if pickled else "model.safetensors"
    one, other = bert(folder), bert(folder / name)
    assert torch.equal(one.bert.encoder.layer[1].output.dense.weight, other.bert.encoder.layer[1].output.dense.weight)
    stored = load_file(folder / name)["bert.embeddings.word_embeddings.weight"] if not pickled else None
    assert stored is None or torch.equal(one.bert.embeddings.word_embeddings.weight, stored)
    raw = np.array(["Small effusions xyz"], dtype=object)
    assert one.prepare(raw).tolist() == other.prepare(raw).tolist() == [[2, 5, 6, 7, 1, 3, 0, 0]]
    assert one.notes[1:] == ("left out: cls and pooler (what it was trained for)",)


def edit(folder, name, change):
    settings = json.loads((folder / "config.json").read_text())
    settings[name] = change
    (folder / "config.json").write_text(json.dumps(settings))


WRONG_FOLDERS = {
    "config.json is missing": lambda folder: (folder / "config.json").unlink(),
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "vocab.txt is missing": lambda folder: (folder / "vocab.txt").unlink(),
    "config.json cannot be read": lambda folder: (folder / "config.json").write_text("{"),
    "config.json cannot be read ": lambda folder: edit(folder, "hidden_size", "wide"),
    "config.json describes a 'roberta', expected 'bert'": lambda folder: edit(folder, "model_type", "roberta"),
    "position_embedding_type='relative_key'": lambda folder: edit(folder, "position_embedding_type", "relative_key"),
    "missing 'encoder.layer.2": lambda folder: edit(folder, "num_hidden_layers", 3),
    "[12, 16] float32 instead of [40, 16]": lambda folder: edit(folder, "vocab_size", 40),
    "knows 4 positions": lambda folder: edit(folder, "max_position_embeddings", 4),
    "expected [PAD] in its first line": lambda folder: (folder / "vocab.txt").write_text("the\n[PAD]\n"),
    "vocab.txt has 14 word pieces": lambda folder: (folder / "vocab.txt").open("a").write("too\nmany\n"),
}


@pytest.mark.parametrize("expected", WRONG_FOLDERS)
def test_a_wrong_bert_folder_is_refused_by_name_with_what_was_found_and_expected(tmp_path, expected):
    folder = bert_folder(tmp_path / "bert")
    WRONG_FOLDERS[expected](folder)
    if expected == "knows 4 positions":
        state = {"bert.embeddings.position_embeddings.weight": torch.zeros(4, 16)}
        save_file(load_file(folder / "model.safetensors") | state, folder / "model.safetensors")
    with pytest.raises(ConfigError) as refused:
        bert(folder)
    assert expected.strip() in str(refused.value)
    assert str(refused.value).startswith(f"model.text.weights={folder}: ")


def test_bert_base_takes_the_sizes_of_bert_base_alone(tmp_path):
    folder = bert_folder(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"found 2 layers of 16 with 2 heads, expected bert_base, 12 layers of 768"):
        bert(folder, name="bert_base", layers=12, hidden=768, heads=12)


def test_case_is_kept_where_the_folder_says_so(tmp_path):
    folder = bert_folder(tmp_path / "bert")
    lowered = bert(folder).tokenise("Small")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert lowered[1] == 5
    assert bert(folder).tokenise("Small")[1] == 1  # [UNK]


def test_weights_are_pinned_to_what_sha256sum_prints(state, tmp_path):
    image, text = tmp_path / "weights.pth", bert_folder(tmp_path / "bert")
    torch.save(state, image)
    config = pinned(ModelConfig(image=ResNetConfig(weights=image), text=BertConfig(weights=text)))
    assert config.image.weights_sha256 == hashlib.sha256(image.read_bytes()).hexdigest()
    command = "sha256sum config.json model.safetensors vocab.txt | sha256sum"
    printed = subprocess.run(["sh", "-c", command], cwd=text, capture_output=True, text=True, check=True).stdout
    assert config.text.weights_sha256 == printed.split()[0]
    assert pinned(config) is not None
    resnet(image, weights_sha256=config.image.weights_sha256)
    bert(text, weights_sha256=config.text.weights_sha256)


def test_an_encoder_for_one_modality_is_pinned_too_and_a_given_digest_stays(tmp_path):
    text = bert_folder(tmp_path / "bert")
    given = BertConfig(weights=text, weights_sha256="0" * 64)
    config = pinned(ModelConfig(text=given, encoders={"report": BertConfig(weights=text)}))
    assert config.text == given
    assert len(config.encoders["report"].weights_sha256) == 64
    assert pinned(ModelConfig()) == ModelConfig()


@pytest.mark.parametrize("file", ["vocab.txt", "config.json"])
@pytest.mark.parametrize("train", ["all", "head", "adapters"])
def test_other_weights_than_those_agreed_on_are_refused_vocabulary_included(tmp_path, file, train):
    folder = bert_folder(tmp_path / "bert")
    agreed = pinned(ModelConfig(text=BertConfig(weights=folder))).text.weights_sha256
    bert(folder, train=train, weights_sha256=agreed)
    with (folder / file).open("a") as stream:
        stream.write("\n")
    with pytest.raises(ConfigError, match=f"found SHA-256 .*expected weights_sha256={agreed}"):
        bert(folder, train=train, weights_sha256=agreed)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (lambda: ResNetConfig(train="head"), "head without weights"),
        (lambda: BertConfig(train="head"), "head without weights"),
        (lambda: BertConfig(train="adapters"), "adapters without weights"),
        (lambda: ResNetConfig(train="adapters"), "a ResNet takes all or head"),
        (lambda: ResNetConfig(weights_sha256="0" * 64), "without weights"),
        (lambda: ResNetConfig(weights="x.pth", weights_sha256="abc"), "pattern"),
    ],
)
def test_a_combination_that_means_nothing_is_refused_with_the_way_out(config, why):
    with pytest.raises(ValueError, match=why):
        config()
