"""config/load.py: YAML 1.2 in, strict trees out, every mistake named by its dotted path."""

import operator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_jax.config import load
from tests import shipped

ROOT = Path(__file__).parents[2]
DENSE = ROOT / "configs" / "tiny" / "dense.yaml"


def load_dense(*overrides):
    return load.load_run(DENSE, list(overrides))


@pytest.mark.parametrize(
    "path", shipped.RUN_CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_every_config_loads_and_its_dump_loads_to_the_same(path, tmp_path):
    run = load.load_run(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(load.dump_yaml(run), encoding="utf-8")
    assert load.load_run(copy) == run
    assert load.load_run(copy).science_hash() == run.science_hash()


def test_config_names_are_unique():
    names = [load.load_run(path).name for path in shipped.RUN_CONFIGS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1e4", 1e4), ("1.5E+3", 1500.0), (".5", 0.5), ("017", 17), ("-3", -3),
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("true", True), ("~", None), ("", None),
        ("1:30", "1:30"), ("2026-11-21", "2026-11-21"), ("0x10", "0x10"), ("'5'", "5"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_yaml_1_2(text, value):
    read = load.parse_yaml(f"key: {text}", where="test")["key"]
    assert (read, type(read)) == (value, type(value))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_a_number(value):
    assert load.parse_yaml(f"key: {value!r}", where="test")["key"] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2: key 'a' is given twice"),
        ("a: {b: 1, b: 2}", "key 'b' is given twice"),
        ("a: &x 1\nb: *x", "aliases are not supported"),
        ("a: [1", "not valid YAML"),
        ("? [a, b]\n: 1", "line 1: a key should be a name"),
        ("a: !!timestamp 2020-01-01", "not valid YAML: could not determine a constructor"),
        ("a: !!int x", "not valid YAML: invalid literal"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("[" * 2000, "nested too deeply|not valid YAML"),
    ],
)
def test_bad_yaml_is_refused_with_its_place(text, message):
    with pytest.raises(load.ConfigError, match=message):
        load.parse_yaml(text, where="test")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1e-3", "did you mean optimizer.learning_rate"),
        ("lr=1e-3", "did you mean optimizer.learning_rate"),
        ("lora_r=8", "did you mean adapter.rank"),
        ("gradient_accumulation_steps=8", "did you mean data.global_batch_sequences"),
        ("data.sequence_length='256'", r"data\.sequence_length: .*valid integer.*got '256'"),
        ("data.sequence_length=256.5", r"data\.sequence_length: .*integer"),
        ("data.sequence_length=true", r"data\.sequence_length: .*integer"),
        ("data.sequence_length=0", "greater than or equal to 1, got 0"),
        ("optimizer.learning_rate=-1e-3", "greater than 0"),
        ("optimizer.beta2=1.0", r"optimizer\.beta2: should be less than 1, got 1\.0"),
        ("seed=4294967296", "less than 4294967296"),
        ("seed=-1", "greater than or equal to 0"),
        ("model.num_heads=3", r"num_heads \(3\) must be a multiple of num_kv_heads \(2\)"),
        ("model.head_width=33", "head_width must be even"),
        ("model.attention.kind=sparse", r"model\.attention"),
        ("model.attention.windo=3", r"model\.attention\.windo: unknown key; did you mean"),
        ("adapter={kind: lora, rank: 4, alpha: 8, target_modules: [qproj]}", "target_modules"),
        ("precision.compute=float16", r"precision\.compute"),
    ],
)
def test_mistake_is_named_by_its_path(override, message):
    with pytest.raises(load.ConfigError, match=message):
        load_dense(override)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(load.ConfigError) as caught:
        load_dense("data.sequence_length=0", "optimizer.max_steps=0", "nothing=1")
    assert len(str(caught.value).splitlines()) == 3


def test_required_key_is_named(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nmodel: {kind: preset, name: mistral_7b_v0_3}\n", encoding="utf-8")
    with pytest.raises(load.ConfigError, match=r"data: this key is required"):
        load.load_run(path)


def test_overrides_reach_leaves_lists_and_null():
    run = load_dense(
        "--seed=7", "data.shuffle=false", "optimizer.max_grad_norm=null", "optimizer.beta2=0.99",
        "evaluate.sample_prompts=[one, two]", "data.train=a=b",
    )  # fmt: skip
    assert (run.seed, run.data.shuffle, run.optimizer.max_grad_norm) == (7, False, None)
    assert (run.optimizer.beta2, run.data.train) == (0.99, "a=b")
    assert run.evaluate.sample_prompts == ("one", "two")


@pytest.mark.parametrize("override", ["seed", "=1", "a..b=1"])
def test_override_without_key_or_value_is_refused(override):
    with pytest.raises(load.ConfigError, match=r"expected key\.path=value"):
        load_dense(override)


def test_changed_kind_replaces_the_node():
    run = load_dense("model.attention={kind: full}", "optimizer.schedule={kind: constant}")
    assert run.model.attention.reaches == (None,)
    assert run.optimizer.schedule.kind == "constant"


@pytest.mark.parametrize(
    ("overrides", "path", "expected"),
    [
        (["adapter.rank=8", "adapter.alpha=16", "adapter.kind=lora"], "adapter.rank", 8),
        (["model.weights=x", "model.kind=checkpoint"], "model.weights", "x"),
        (["optimizer.kind=adamw"], "optimizer.learning_rate", 1e-3),
        (["stage.z_loss=0.5", "stage.kind=lm"], "stage.z_loss", 0.5),
        (
            ["optimizer.schedule.final_fraction=0.0", "optimizer.schedule.kind=cosine"],
            "optimizer.schedule.final_fraction",
            0.0,
        ),
        (
            ["data.packing.block_rows=64", "data.packing.kind=best_fit"],
            "data.packing.block_rows",
            64,
        ),
    ],
)
def test_a_kind_may_be_named_after_its_fields(overrides, path, expected):
    for order in (overrides, overrides[::-1]):
        assert operator.attrgetter(path)(load_dense(*order)) == expected


def test_a_kind_over_a_file_that_relies_on_the_default_keeps_its_fields(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(f"base: {DENSE}\nstage: {{z_loss: 0.01}}\n")
    assert load.load_run(path, ["stage.kind=lm"]).stage.z_loss == 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: [a]", r"base: should be the path of one file, got \['a'\]"),
        ("base: x.yaml", r"base: goes round in a circle, x\.yaml -> x\.yaml"),
        ("base: y.yaml", r"base: goes round in a circle, x\.yaml -> y\.yaml -> x\.yaml"),
    ],
)
def test_a_base_that_leads_nowhere_is_refused(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    (tmp_path / "y.yaml").write_text("base: x.yaml")
    with pytest.raises(load.ConfigError, match=message):
        load.load_run(tmp_path / "x.yaml")


def test_fresh_is_taken_out_of_the_overrides():
    assert load.split_fresh(["seed=1", "fresh=true"]) == (["seed=1"], True)
    assert load.split_fresh(["fresh=true", "fresh=false"]) == ([], False)
    with pytest.raises(load.ConfigError, match="fresh: should be true or false, got 'yes'"):
        load.split_fresh(["fresh=yes"])


def test_a_model_from_scratch_names_its_tokenizer():
    for name in ("tiny/dense", "tiny/lora", "tiny/pod", "mistral_7b/pretrain"):
        assert load.load_run(ROOT / "configs" / f"{name}.yaml").data.tokenizer != "auto"


def test_base_is_laid_under_and_relative_to_the_file():
    dense, lora = load.load_run(DENSE), load.load_run(DENSE.with_name("lora.yaml"))
    assert lora.model == dense.model
    assert (lora.adapter.kind, lora.adapter.scale) == ("lora", 2.0)
    assert lora.optimizer.warmup_steps == dense.optimizer.warmup_steps


def test_missing_file_suggests_the_nearest():
    with pytest.raises(load.ConfigError, match=r"did you mean .*dense\.yaml"):
        load.load_run(DENSE.with_name("dens.yaml"))


def test_file_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"name: \xff")
    with pytest.raises(load.ConfigError, match="not UTF-8"):
        load.load_run(path)


def test_schema_names_every_area():
    properties = load.schema()["properties"]
    assert {"model", "adapter", "data", "optimizer", "stage", "evaluate"} <= set(properties)
