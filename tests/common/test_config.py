"""Settings: what is accepted, what is refused and with which words, and that they round-trip."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hushtune.common.config import (
    AdapterConfig,
    AggregationConfig,
    DataConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    SimulationConfig,
    TrainConfig,
)
from hushtune.common.config_io import (
    config_hash,
    dump_toml,
    json_schema,
    load_config,
    loads_config,
    replace,
    template,
)
from hushtune.common.config_problems import known_keys
from hushtune.common.errors import (
    ConfigError,
    MissingFileError,
    PresetError,
    UnknownKeyError,
)
from hushtune.common.presets import PRESETS as OURS

DEMO = "data.source=demo"
PRESETS = {
    "demo": {"data": {"source": "demo"}},
    "small": {"data": {"source": "demo"}, "train": {"rounds": 3, "sampling_probability": 0.3}},
}


def load(*overrides: str, **kwargs: Any) -> RunConfig:
    return load_config(None, overrides=(DEMO, *overrides), **kwargs)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------- defaults ----


def test_only_data_has_to_be_given() -> None:
    config = load()
    assert config == RunConfig(data=DataConfig(source="demo"))
    assert (config.train.rounds, config.train.warmup_rounds, config.train.local_steps) == (
        20,
        18,
        3,
    )
    # What benchmarks/recipe.py measured is what others get who say nothing of it.
    demo = RunConfig.model_validate(OURS["demo"])
    assert (config.train, config.adapter, config.model) == (demo.train, demo.adapter, demo.model)
    assert (config.privacy.epsilon, config.privacy.delta) == (3.0, 1e-5)
    assert config.adapter.dora is False


def test_no_data_at_all_says_how_to_name_some() -> None:
    with pytest.raises(ConfigError, match=r"data is missing(.|\n)*data\.source = \"demo\""):
        load_config(None)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().privacy.epsilon = 100.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("rounds", "warmup"), [(12, 10), (5, 4), (1, 0), (30, 27)])
def test_warmup_follows_rounds_unless_it_is_given(rounds: int, warmup: int) -> None:
    assert load(f"train.rounds={rounds}").train.warmup_rounds == warmup
    assert load(f"train.rounds={rounds}", "train.warmup_rounds=1").train.warmup_rounds == 1


# --------------------------------------------------------------------------- unknown keys ----


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.lerning_rate", "train.learning_rate"),
        ("privacy.epsilom", "privacy.epsilon"),
        ("epsilon", "privacy.epsilon"),  # the right name, outside its table
        ("train.rank", "adapter.rank"),  # the right name, in another table
        ("data.fil", "data.file"),
        ("tran.rounds", "train"),
        ("sede", "seed"),
        ("privacy.clip", "privacy.clip_norm"),  # how the right name begins
        ("n_rounds", "train.rounds"),
    ],
)
def test_an_unknown_key_gets_the_nearest_proposed(key: str, meant: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        load(f"{key}=1")
    assert caught.value.given in (key, key.split(".", maxsplit=1)[0])
    assert caught.value.remedy == f"write {meant}"
    assert "--set" in str(caught.value)


def test_an_unknown_key_that_resembles_nothing_proposes_nothing() -> None:
    with pytest.raises(UnknownKeyError, match="remove it"):
        load("zzzzzz=1")


@pytest.mark.parametrize("key", ["train.foo", "privacy.sigma", "speed.compile", "model.device"])
def test_an_unknown_key_of_a_known_table_is_answered_by_what_the_table_has(key: str) -> None:
    with pytest.raises(UnknownKeyError, match="remove it") as caught:
        load(f"{key}=1")
    table = key.partition(".")[0]
    expected = str(caught.value.expected)
    assert expected.startswith(f"one of {table}.")
    assert {
        "train": "train.rounds",
        "privacy": "privacy.clip_norm",
        "speed": "speed.pad",
        "model": "model.name",
    }[table] in expected


def test_an_unknown_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nsource = "demo"\n[privacy]\nepsilonn = 1\n')
    with pytest.raises(UnknownKeyError) as caught:
        load_config(path)
    assert "privacy.epsilonn" in str(caught.value)
    assert str(path) in str(caught.value)


# --------------------------------------------------------------------------- wrong values ----


@pytest.mark.parametrize(
    ("override", "key", "shown", "allowed"),
    [
        ("train.rounds=0", "train.rounds", "0", "greater than or equal to 1"),
        ("train.rounds=2.5", "train.rounds", "2.5", "a whole number"),
        ("train.rounds=true", "train.rounds", "true", "a whole number"),
        ("train.rounds='3'", "train.rounds", '"3"', "a whole number"),
        ("train.rounds=99999999999999999999", "train.rounds", "9" * 20, "1000000000"),
        ("seed=99999999999999999999", "seed", "9" * 20, "less than"),
        ("train.batch_size=99999999999999999999", "train.batch_size", "9" * 20, "1000000000"),
        ("train.warmup_rounds=99999999999999999999", "train.warmup_rounds", "9" * 20, "1000000000"),
        ("train.learning_rate=1e30", "train.learning_rate", "1e+30", "less than or equal to 100"),
        ("aggregation.learning_rate=101.0", "aggregation.learning_rate", "101.0", "100"),
        ("privacy.clip_norm=1e300", "privacy.clip_norm", "1e+300", "1000000"),
        ("adapter.alpha=1e30", "adapter.alpha", "1e+30", "1000000"),
        ("adapter.targets=3", "adapter.targets", "3", "a list"),
        ("adapter.targets=[3]", "adapter.targets.0", "3", "text in quotes"),
        ("adapter.rslora='yes'", "adapter.rslora", '"yes"', "true or false"),
        ("data.class_weights=3", "data.class_weights", "3", "a table [data.class_weights]"),
        ("train.learning_rate='a'", "train.learning_rate", '"a"', "a number"),
        ("simulation.policies=''", "simulation.policies", '""', "a path in quotes"),
        ("train=3", "train", "3", "a table [train]"),
        ("train.optimizer=adam", "train.optimizer", '"adam"', "'adamw' or 'sgd'"),
        ("privacy.epsilon=0", "privacy.epsilon", "0", "greater than 0"),
        ("privacy.epsilon=-1", "privacy.epsilon", "-1", "greater than 0"),
        ("privacy.epsilon=nan", "privacy.epsilon", "NaN", "finite"),
        ("privacy.epsilon=inf", "privacy.epsilon", "Infinity", "finite"),
        ("privacy.delta=0", "privacy.delta", "0", "greater than 0"),
        ("privacy.delta=-1e-5", "privacy.delta", "-1e-05", "greater than 0"),
        ("privacy.delta=1", "privacy.delta", "1", "less than 1"),
        ("privacy.clip_norm=0", "privacy.clip_norm", "0", "greater than or equal to 0.000001"),
        ("privacy.unit=patient", "privacy.unit", '"patient"', "'example'"),
        ("train.sampling_probability=1.1", "train.sampling_probability", "1.1", "less than"),
        ("data.test_fraction=0", "data.test_fraction", "0", "greater than 0"),
        ("data.class_weights.bad=0", "data.class_weights.bad", "0", "greater than 0"),
        ("data.public_sizes.north=0", "data.public_sizes.north", "0", "greater than or equal"),
        ("adapter.rank=0", "adapter.rank", "0", "greater than or equal to 1"),
        ("seed=-1", "seed", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_says_given_allowed_and_where(
    override: str, key: str, shown: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    error = caught.value
    assert error.code == "HT100"
    assert error.message.startswith(f"{key} ")
    assert error.message.endswith("in --set")
    assert error.given == shown
    assert allowed in (error.expected or "")


def test_where_is_the_layer_that_held_the_value(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nrounds = 0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, preset="demo", presets=PRESETS, overrides=["seed=3"])
    assert caught.value.message.endswith(f"in {path}")
    presets = {"bad": {"data": {"source": "demo"}, "train": {"rounds": 0}}}
    with pytest.raises(ConfigError, match="in preset bad"):
        load_config(None, preset="bad", presets=presets)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("adapter.dora=true", "gradient of one example"),
        ("privacy.delta=1e-15", "too small to account for"),
        ("privacy.delta=1e-300", "too small to account for"),
        ("privacy.trust=central", "privacy.trust has no 'central'"),
    ],
)
def test_what_is_not_available_is_refused_with_the_reason(override: str, reason: str) -> None:
    key = override.split("=", maxsplit=1)[0]
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert reason in caught.value.message
    assert f"({key}, in --set)" in caught.value.message
    assert caught.value.remedy


def test_an_unknown_trust_names_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load("privacy.trust=nobody")
    assert caught.value.expected == "'site', 'server', 'distributed' or 'off'"


# ------------------------------------------------------------- settings that exclude others ----


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_masked_sums_are_not_rounded(encoding: str) -> None:
    rounded = f"aggregation.encoding={encoding}"
    assert load(rounded, "privacy.trust=site").aggregation.encoding == encoding
    for unit in ("example", "client"):
        with pytest.raises(ConfigError, match="numbers of a ring") as caught:
            load("privacy.trust=distributed", f"privacy.unit={unit}", rounded)
        assert caught.value.given == encoding


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"source": "demo", "file": "/a.csv"},
        {"file": "/a.csv", "files": {"north": "/b.csv"}},
        {"dataset": "imdb", "files": {"north": "/b.csv"}, "source": "demo"},
    ],
)
def test_data_need_exactly_one_source(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one source"):
        DataConfig.model_validate(data)


def test_two_sources_in_one_file_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nsource = "demo"\nfile = "a.csv"\nsite = "s"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.given == "source and file"
    with pytest.raises(ConfigError, match="exactly one source"):
        load("data.file=a.csv", "data.site=s")


def test_a_later_layer_replaces_the_source(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nfile = "a.csv"\nsite = "s"\n')
    data = load_config(path, preset="demo", presets=PRESETS).data
    assert (data.source, data.file) == (None, tmp_path / "a.csv")


def test_batch_size_and_sampling_probability_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="same thing twice"):
        load("train.batch_size=32", "train.sampling_probability=0.1")
    train = load_config(
        None, preset="small", presets=PRESETS, overrides=["train.batch_size=32"]
    ).train
    assert (train.batch_size, train.sampling_probability) == (32, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.warmup_rounds=21"], "the warm-up is longer than the run"),
        (["train.rounds=1000", "train.local_steps=1001"], "more steps than a site takes part in"),
        (["simulation.quorum=3", "simulation.sites_per_round=2"], "quorum can never be reached"),
        (["data.validation_fraction=.5", "data.test_fraction=.5"], "nothing to train on"),
        (["data.partition=iid"], "needs the number of sites"),
        (["data.sites=3"], "the data say how many sites"),
        (["adapter.targets=['q', 'q']"], "named twice"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*overrides)


def test_one_file_needs_to_say_who_holds_which_row(tmp_path: Path) -> None:
    text = '[data]\nfile = "a.csv"\n'
    with pytest.raises(ConfigError, match=r"data\.site"):
        load_config(write(tmp_path, text))
    assert load_config(write(tmp_path, text + 'site = "s"\n')).data.site == "s"
    dealt = load_config(write(tmp_path, text + 'partition = "iid"\nsites = 3\n'))
    assert dealt.data.sites == 3
    assert DataConfig(file=Path("a.csv")).site is None  # a preview deals no rows to sites


# ------------------------------------------------------------------- presets and overrides ----


def test_layers_stand_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 2\n[train]\nlocal_steps = 5\n")
    config = load_config(path, preset="small", presets=PRESETS, overrides=["seed=3"])
    assert (config.seed, config.train.local_steps, config.train.rounds) == (3, 5, 3)
    assert PRESETS["small"]["train"] == {"rounds": 3, "sampling_probability": 0.3}


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(PresetError) as caught:
        load_config(None, preset="dmeo", presets=PRESETS)
    assert (caught.value.expected, caught.value.remedy) == ("demo, small", "write demo")
    with pytest.raises(PresetError):
        load_config(None, preset="demo")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("privacy.epsilon=1", "privacy", "epsilon", 1.0),
        ("privacy.epsilon = .5", "privacy", "epsilon", 0.5),
        ("privacy.delta=1e-6", "privacy", "delta", 1e-6),
        ("simulation.baselines=false", "simulation", "baselines", False),
        ("aggregation.rule=fedit", "aggregation", "rule", "fedit"),
        ('aggregation.rule="fedit"', "aggregation", "rule", "fedit"),
        ("adapter.targets=['q', 'v']", "adapter", "targets", ("q", "v")),
        ("data.text=2024", "data", "text", "2024"),
        ("data.text=true", "data", "text", "true"),
        ("data.label=a = b", "data", "label", "a = b"),
        ("data.public_sizes.north=12", "data", "public_sizes", {"north": 12}),
        ('data.class_weights."very bad"=2', "data", "class_weights", {"very bad": 2.0}),
        ("model.name=org/name", "model", "name", "org/name"),
    ],
)
def test_overrides_are_read_as_toml_else_as_text(
    override: str, section: str, key: str, value: object
) -> None:
    assert getattr(getattr(load(override), section), key) == value


@pytest.mark.parametrize("override", ["seed", "=3", "", "a b=1", "train..rounds=3", "a=1\nb=2\n=3"])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load(override)


def test_an_override_cannot_smuggle_in_a_second_key() -> None:
    assert load("data.text=1\nseed = 9").seed == 0
    with pytest.raises(ConfigError):
        load("train.rounds=3\nseed = 9")


# ----------------------------------------------------------------------------------- paths ----


def test_paths_are_taken_from_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "models" / "encoder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    text = '[data.files]\nnorth = "n.csv"\nsouth = "/abs/s.csv"\n[model]\nname = "models/encoder"\n'
    config = load_config(write(tmp_path, text), overrides=["data.files.west=w.csv"])
    assert config.data.files == {
        "north": tmp_path / "n.csv",
        "south": Path("/abs/s.csv"),
        "west": tmp_path / "here" / "w.csv",
    }
    assert config.model.name == str(tmp_path / "models" / "encoder")
    assert load("model.name=org/encoder").model.name == "org/encoder"


def test_a_saved_configuration_means_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = dump_toml(RunConfig(data=DataConfig(file=Path("a.csv"), site="s")))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert load_config(write(elsewhere, saved)).data.file == tmp_path / "a.csv"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.toml"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"run\.toml is not TOML"):
        load_config(write(tmp_path, "seed = = 1"))
    (tmp_path / "latin.toml").write_bytes("# é".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "latin.toml")


# ------------------------------------------------------------------------------ round trip ----

_names = st.text(min_size=1, max_size=12)
_positive = st.floats(min_value=1e-12, max_value=100)
_counts = st.integers(1, 10**6)
_paths = st.text("abc é.-_", min_size=1, max_size=8).map(lambda name: Path("/data") / name)


def _optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def _data(draw: st.DrawFn) -> DataConfig:
    sources: dict[str, st.SearchStrategy[Any]] = {
        "source": st.just("demo"),
        "file": _paths,
        "files": st.dictionaries(_names, _paths, min_size=1, max_size=3),
        "dataset": st.text("abc-", min_size=1),
    }
    source = draw(st.sampled_from(sorted(sources)))
    partition = draw(st.sampled_from(["natural", "iid", "dirichlet", "quantity", "shards"]))
    natural = partition == "natural"
    return DataConfig.model_validate(
        {
            source: draw(sources[source]),
            "site": draw(_names if natural else _optional(_names)),
            "text": draw(_names),
            "label": draw(_names),
            "validation_fraction": draw(st.floats(0, 0.45)),
            "test_fraction": draw(st.floats(0.01, 0.45)),
            "partition": partition,
            "sites": None if natural else draw(_counts),
            "alpha": draw(_positive),
            "max_rows_per_site": draw(_optional(_counts)),
            "public_sizes": draw(st.dictionaries(_names, _counts, max_size=3)),
            "class_weights": draw(st.dictionaries(_names, _positive, max_size=3)),
            "inconsistent": draw(st.sampled_from(["drop", "keep", "error"])),
            "missing": draw(st.sampled_from(["error", "drop"])),
        }
    )


@st.composite
def _train(draw: st.DrawFn) -> TrainConfig:
    rounds = draw(st.integers(1, 10**5))
    by_size = draw(st.booleans())
    return TrainConfig(
        rounds=rounds,
        warmup_rounds=draw(st.integers(0, rounds)),
        batch_size=draw(_optional(_counts)) if by_size else None,
        sampling_probability=None if by_size else draw(_optional(st.floats(1e-9, 1))),
        learning_rate=draw(_positive),
        schedule=draw(st.sampled_from(["constant", "linear", "cosine"])),
    )


_configs = st.builds(
    RunConfig,
    seed=st.integers(0, 2**63 - 1),
    data=_data(),
    model=st.builds(ModelConfig, name=st.text("abc-", min_size=1), layer=_optional(_counts)),
    adapter=st.builds(
        AdapterConfig,
        alpha=_positive,
        targets=st.lists(_names, unique=True, max_size=3).map(tuple),
        rslora=st.booleans(),
    ),
    privacy=st.builds(
        PrivacyConfig,
        trust=st.sampled_from(["site", "off"]),
        epsilon=_positive,
        delta=st.floats(1e-12, 0.999),
    ),
    train=_train(),
    aggregation=st.builds(AggregationConfig, rule=st.sampled_from(["ffa", "fedit"])),
    simulation=st.builds(SimulationConfig, baselines=st.booleans()),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(config=_configs)
def test_what_is_dumped_is_loaded_equal(config: RunConfig, tmp_path: Path) -> None:
    text = dump_toml(config)
    assert load_config(write(tmp_path, text)) == config
    assert loads_config(text) == config
    assert config_hash(loads_config(text)) == config_hash(config)


def test_a_dump_is_complete() -> None:
    written = tomllib.loads(dump_toml(load()))
    without_value = {
        "data.file",
        "data.files",
        "data.dataset",
        "data.site",
        "data.sites",
        "data.group",
        "data.labels",
    }
    without_value |= {"data.max_rows_per_site", "model.layer", "data.shots", "train.patience"}
    without_value |= {"data.folds", "data.fold", "data.left_out"}
    without_value |= {"simulation.policies", "simulation.ledgers"}
    without_value |= {"train.batch_size", "train.sampling_probability", "privacy.min_survivors"}
    without_value |= {"train.batch_size", "train.sampling_probability"}
    without_value |= {"privacy.client_turns", "aggregation.faulty_sites", "aggregation.norm_bound"}
    without_value |= {"personal.learning_rate", "aggregation.learning_rate"}
    without_value |= {"task.metric", "task.range", "task.positive", "data.second"}
    without_value |= {"data.folder", "model.image_size", "data.split_by"}
    for key in set(known_keys()) - without_value:
        section, _, name = key.rpartition(".")
        assert name in (written[section] if section else written), key


# ----------------------------------------------------------------------------- config_hash ----


def test_the_hash_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    head = '[data]\nsource = "demo"\n'
    one = head + "[data.public_sizes]\na = 1\nb = 2\n[train]\nrounds = 4\nlocal_steps = 2\n"
    two = "[train]\nlocal_steps = 2\nrounds = 4\n" + head + "[data.public_sizes]\nb = 2\na = 1\n"
    assert config_hash(load_config(write(tmp_path, one))) == config_hash(
        load_config(write(tmp_path, two))
    )


def test_the_hash_depends_on_every_value() -> None:
    base = config_hash(load())
    assert len(base) == 64
    changes = ["seed=1", "privacy.epsilon=2.9", "data.text=review", "simulation.baselines=false"]
    assert len({base, *(config_hash(load(change)) for change in changes)}) == 5


def test_the_hash_is_the_same_whether_a_default_is_spelt_out() -> None:
    assert config_hash(load("train.rounds=20", "privacy.epsilon=3")) == config_hash(load())


# -------------------------------------------------------------- replace, template and schema ----


def test_replace_checks_anew() -> None:
    config = replace(load(), {"privacy.epsilon": 1.0, "train.batch_size": 64})
    assert (config.privacy.epsilon, config.train.batch_size) == (1.0, 64)
    probability = replace(config, {"train.sampling_probability": 0.1}).train
    assert (probability.batch_size, probability.sampling_probability) == (None, 0.1)
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        replace(config, {"privacy.epsilon": 0})
    with pytest.raises(UnknownKeyError):
        replace(config, {"privacy.sigma": 1})


def test_the_template_has_every_key_with_its_default_and_meaning(tmp_path: Path) -> None:
    text = template()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    for key in known_keys():
        name = key.rpartition(".")[2]
        index = next(
            i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{name} = ")
        )
        assert lines[index - 1].startswith("# "), key
    filled = text.replace('# source = "demo"', 'source = "demo"')
    assert load_config(write(tmp_path, filled)) == load()


def test_the_templates_examples_can_be_used(tmp_path: Path) -> None:
    text = template().replace('# file = "all.csv"', 'file = "all.csv"')
    text = text.replace('# site = "hospital"', 'site = "hospital"').replace("# layer", "layer")
    config = load_config(write(tmp_path, text))
    assert (config.data.file, config.data.site) == (tmp_path / "all.csv", "hospital")
    assert config.model.layer == 3


def test_the_schema_is_json_and_forbids_unknown_keys() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["required"] == ["data"]
    assert schema["additionalProperties"] is False
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values())
    assert schema["$defs"]["PrivacyConfig"]["properties"]["epsilon"]["exclusiveMinimum"] == 0


@pytest.mark.parametrize(("rounds", "warmup"), [(5, 4), (1, 0), (40, 36)])
def test_another_number_of_rounds_brings_its_own_warm_up(rounds: int, warmup: int) -> None:
    """A preset's warm-up belongs to the preset's rounds."""
    presets = {"p": {"data": {"source": "demo"}, "train": {"rounds": 20, "warmup_rounds": 18}}}
    shorter = load_config(preset="p", presets=presets, overrides=[f"train.rounds={rounds}"])
    assert (shorter.train.rounds, shorter.train.warmup_rounds) == (rounds, warmup)
    both = [f"train.rounds={rounds}", "train.warmup_rounds=1"]
    assert load_config(preset="p", presets=presets, overrides=both).train.warmup_rounds == 1
    untouched = load_config(preset="p", presets=presets, overrides=["train.local_steps=1"])
    assert untouched.train.warmup_rounds == 18


@pytest.mark.parametrize("rounds", [1, 7, 30])
def test_no_warm_up_and_nothing_but_warm_up_stay_so(rounds: int) -> None:
    for of_twenty, expected in ((0, 0), (20, rounds)):
        train = {"rounds": 20, "warmup_rounds": of_twenty}
        presets = {"p": {"data": {"source": "demo"}, "train": train}}
        asked = f"train.rounds={rounds}"
        found = load_config(preset="p", presets=presets, overrides=[asked])
        assert (found.train.rounds, found.train.warmup_rounds) == (rounds, expected)
        assert replace(found, {"train.rounds": 2 * rounds}).train.warmup_rounds == 2 * expected


def test_a_warm_up_that_is_asked_for_counts_and_the_same_rounds_change_nothing() -> None:
    train = {"rounds": 20, "warmup_rounds": 16}
    presets = {"p": {"data": {"source": "demo"}, "train": train}}
    found = load_config(preset="p", presets=presets, overrides=["train.rounds=20"])
    assert found.train.warmup_rounds == 16
    asked = {"train.warmup_rounds": 20, "train.rounds": 30}
    for changes in (asked, dict(reversed(asked.items()))):
        assert replace(found, changes).train.warmup_rounds == 20


def test_another_number_of_rounds_keeps_the_warm_up_that_a_file_has(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[data]\nsource = "demo"\n[train]\nrounds = 20\nwarmup_rounds = 4\n')
    assert load_config(path, overrides=["train.rounds=50"]).train.warmup_rounds == 4
    with pytest.raises(ConfigError, match="warm-up is longer"):
        load_config(path, overrides=["train.rounds=3"])
    # Whether a search or anything else changes the rounds, and whatever it changed before.
    found = replace(load_config(path), {"train.local_steps": 1})
    assert replace(found, {"train.rounds": 50}).train.warmup_rounds == 4
    path.write_text('[data]\nsource = "demo"\n[train]\nrounds = 20\n')
    assert load_config(path, overrides=["train.rounds=50"]).train.warmup_rounds == 45
    found = replace(load_config(path), {"train.local_steps": 1})
    assert replace(found, {"train.rounds": 50}).train.warmup_rounds == 45
    asked = replace(found, {"train.warmup_rounds": 3})
    assert replace(asked, {"train.rounds": 50}).train.warmup_rounds == 3


@pytest.mark.parametrize(("rounds", "warmup"), [(5, 4), (100, 90)])
def test_a_template_with_another_number_of_rounds_alone_is_a_run(
    tmp_path: Path, rounds: int, warmup: int
) -> None:
    path = tmp_path / "run.toml"
    text = template().replace("rounds = 20\n", f"rounds = {rounds}\n")
    path.write_text(
        text.replace('# source = "demo"', 'source = "demo"').replace('\nsite = "site"', "")
    )
    train = load_config(path).train
    assert (train.rounds, train.warmup_rounds) == (rounds, warmup)
