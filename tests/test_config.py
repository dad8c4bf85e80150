"""From overrides to one frozen configuration: every option composes, wrong values are named, and files read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from secure_fed.config import compose_config, config_dir, dump_config, freeze, load_config
from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig

# Options that are another one at the sizes of its paper.
SIZES_OF_PAPERS = {
    "method=generative_paper": "generative",
    "method=fin_paper": "fin",
    "model/translator=paper": "transformer",
}


def configured(*overrides: str) -> RunConfig:
    return freeze(compose_config(overrides), Path("run"))


def options() -> list[str]:
    """Every group option that needs nothing else said."""
    root = config_dir()
    found = [path.relative_to(root) for path in sorted(root.rglob("*.yaml")) if path.parent != root]
    found = [path for path in found if path.parts[0] not in {"sweep", "launcher"}]  # those of another configuration
    return [f"{path.parent.as_posix()}={path.stem}" for path in found if path.parent.name not in {"data", "experiment"}]


@pytest.mark.parametrize("option", options())
def test_every_option_of_every_group_composes_and_validates(option: str) -> None:
    config = configured(option)
    group, name = option.split("=")
    section: object = config
    for part in group.split("/"):
        section = getattr(section, part, None)
    if hasattr(section, "name"):
        assert section.name == SIZES_OF_PAPERS.get(option, name)


@pytest.mark.parametrize("path", sorted((config_dir() / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_is_chosen_like_any_other_group(path: Path) -> None:
    chosen, default = compose_config([f"experiment={path.stem}"]), compose_config([])
    assert chosen != default
    with pytest.raises(ConfigError, match="experiment"):
        compose_config([f"+experiment={path.stem}"])


def test_the_configuration_is_frozen() -> None:
    config = configured()
    with pytest.raises(ValidationError):
        config.privacy.epsilon = 100.0


def test_a_configuration_written_to_a_run_folder_reads_back_the_same(tmp_path: Path) -> None:
    config = configured(
        "method=ridge", "privacy.epsilon=3", "federation.ownership={image:2,image+text:8}", "strategy=fedadam"
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path) == config


def test_ownership_may_be_written_with_or_without_quotes_on_the_command_line() -> None:
    assert configured("federation.ownership=8:0:2").federation.ownership == "8:0:2"
    assert configured("federation.ownership='8:0:2'").federation.ownership == "8:0:2"
    assert configured("federation.ownership='\"8:0:2\"'").federation.ownership in {"8:0:2", '"8:0:2"'}


def test_the_papers_split_is_a_preset_that_allows_no_corrupt_site() -> None:
    federation = configured("federation=paper_8_0_2").federation
    assert (federation.ownership, federation.corrupt, federation.sites) == ("8:0:2", 0, 10)


@pytest.mark.parametrize("path", ["secagg/on", "federation/default", "engine/in_process", "engine/simulation"])
def test_every_key_of_the_federation_the_masks_and_the_engine_is_explained(path: str) -> None:
    lines = (config_dir() / f"{path}.yaml").read_text().splitlines()
    bare = [line for line in lines if ": " in line and "#" not in line and not line.startswith("name:")]
    assert bare == []


def test_the_defaults_mask_over_the_complete_graph_without_lowered_floors_on_one_thread() -> None:
    secagg = configured().secagg
    assert (secagg.graph, secagg.floors, secagg.threads, secagg.max_attempts) == ("complete", {}, 1, 3)
    assert configured("secagg=off").secagg.model_dump() == {**secagg.model_dump(), "mode": "off"}
    assert configured("secagg=k_regular").secagg.model_dump() == {**secagg.model_dump(), "graph": "k_regular"}
    assert configured().engine.timeout_s == 600


def test_floors_that_owners_opted_for_are_added_by_component() -> None:
    config = configured("+secagg.floors={encoder.text:2,translator.image_to_text:2}")
    assert config.secagg.floors == {"encoder.text": 2, "translator.image_to_text": 2}


def test_weaknesses_say_what_each_switch_costs() -> None:
    assert configured().weaknesses() == {}
    weak = configured("privacy=off", "secagg.graph=k_regular", "strategy=flower").weaknesses()
    assert list(weak) == ["privacy=off", "secagg.graph=k_regular", "strategy=flower"]
    assert "semi-malicious" in weak["secagg.graph=k_regular"]
    assert list(configured("secagg=off", "secagg.graph=k_regular").weaknesses()) == ["secagg=off"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("secagg.graph=star", "secagg.graph='star'"),
        ("secagg.max_dropout=1", "secagg.max_dropout=1"),
        ("secagg.max_dropout=-0.1", "secagg.max_dropout=-0.1"),
        ("secagg.threads=0", "secagg.threads=0"),
        ("secagg.max_attempts=0", "secagg.max_attempts=0"),
        ("secagg.min_cohort=0", "secagg.min_cohort=0"),
        ("secagg.floors=2", "secagg.floors=2"),
        ("+secagg.floors={fusion:two}", "secagg.floors.fusion='two'"),
        ("engine.timeout_s=0", "engine.timeout_s=0"),
        ("engine.timeout_s=inf", "engine.timeout_s=inf"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        configured(override)
    assert expected in str(error.value)


def test_the_number_of_attempts_is_no_matter_of_the_federation_any_more() -> None:
    with pytest.raises(ConfigError, match=r"did you mean secagg\.max_attempts\?"):
        configured("federation.max_attempts=2")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("privacy.epsilonn=3", "did you mean privacy.epsilon"),
        ("epsilon=3", "did you mean privacy.epsilon?"),
        ("method.claszify.steps=3", "did you mean method.classify.steps"),
        ("model.image.chanels=3", "unknown key 'model.image.chanels'"),
        ("methods=fin", "did you mean method"),
        ("data/synthetic_cxr=1", "unknown key 'data/synthetic_cxr'"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_config([override])
    assert expected in str(error.value)


def test_a_key_is_looked_for_among_those_of_the_options_that_were_chosen() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'model\.image\.chanels'; did you mean model\.image\.channels"):
        compose_config(["model/image=small_cnn", "model.image.chanels=4"])
    assert configured("model/image=small_cnn", "model.image.channels=4").model.image.channels == 4


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        configured("seed=-1", "privacy.epsilon=0", "federation.dropout=1.5", "method.classify.steps=no")
    for part in ("seed=-1", "privacy.epsilon=0", "federation.dropout=1.5", "method.classify.steps='no'"):
        assert part in str(error.value)


def test_one_modality_can_have_an_encoder_of_its_own() -> None:
    config = configured("+model.encoders.image={name: small_cnn, channels: 4}")
    assert config.model.encoders["image"].channels == 4


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [", "is damaged"),
        (b"word", "expected a mapping"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"", "is damaged"),
        (b"name: x\n", r"config\.yaml: .*required.*another version"),
        (b"foo: 1\n", r"unknown key 'foo'"),
    ],
)
def test_a_damaged_configuration_names_its_file(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as error:
        load_config(tmp_path)
    assert str(tmp_path / "config.yaml") in str(error.value)
