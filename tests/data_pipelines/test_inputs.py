"""A run's sources: raw ones are prepared once, prepared ones opened, wrong ones refused."""

import json
from pathlib import Path

import pytest

from data_pipelines import batches
from data_pipelines import inputs
from data_pipelines import prepare
from mistral_jax import tokenizers
from mistral_jax.config.data import DataConfig
from mistral_jax.config.data import Source

BYTES = tokenizers.load_tokenizer("bytes")


def write_raw(folder: Path, count: int) -> str:
    folder.mkdir()
    for index in range(count):
        (folder / f"{index}.md").write_text(f"document {folder.name} number {index}")
    return str(folder)


def config(train, **changes) -> DataConfig:
    return DataConfig(train=train, sequence_length=32, global_batch_sequences=2, **changes)


def test_a_raw_folder_is_prepared_once_and_split(tmp_path):
    data = config(write_raw(tmp_path / "raw", 20), eval_fraction=0.3)
    lines: list[str] = []
    made = inputs.open_sources(data, BYTES, tmp_path / "run", on_progress=lines.append)
    assert [source.name for source in made.train] == ["raw"]
    assert len(made.train[0]) + len(made.held_out[0]) == 20
    again = inputs.open_sources(data, BYTES, tmp_path / "run", on_progress=lines.append)
    assert again.train[0].digest == made.train[0].digest
    assert "reused" in lines[-1]
    batch = next(batches.train_batches(made.train, data, 0, weights=made.weights))
    assert batch.tokens.shape == (2, 32)


def test_changed_documents_of_a_begun_run_are_prepared_beside_what_it_began_with(tmp_path):
    data = config(write_raw(tmp_path / "raw", 20), eval_fraction=0.3)
    began = inputs.open_sources(data, BYTES, tmp_path / "run").train[0]
    before = {path: path.read_bytes() for path in began.folder.rglob("*") if path.is_file()}
    lines: list[str] = []

    def go_on():
        made = inputs.open_sources(
            data, BYTES, tmp_path / "run", is_begun=True, on_progress=lines.append
        )
        return made.train[0]

    held_out, trained = tmp_path / "raw" / "0.md", tmp_path / "raw" / "2.md"
    held_out.unlink()
    assert go_on().folder == began.folder
    assert "held-out documents have changed" in lines[-1]
    trained.write_text("other words too")
    assert go_on().digest != began.digest
    assert {path: path.read_bytes() for path in before} == before
    held_out.write_text("document raw number 0")
    trained.write_text("document raw number 2")
    assert (go_on().folder, go_on().digest) == (began.folder, began.digest)
    assert {path: path.read_bytes() for path in before} == before
    assert lines[-1] == f"{began.folder}: reused, nothing has changed since it was prepared"
    damaged = next(path for path in before if path.suffix == ".array_record")
    damaged.write_bytes(before[damaged][:-1])
    assert (go_on().folder, go_on().digest) == (began.folder, began.digest)
    assert damaged.read_bytes() == before[damaged]


def test_further_held_out_sources_are_only_looked_at(tmp_path):
    train = (
        Source(name="a", path=write_raw(tmp_path / "x", 6), weight=2.0),
        Source(name="b", path=write_raw(tmp_path / "y", 4)),
    )
    data = config(train, eval=write_raw(tmp_path / "held", 3), eval_fraction=0.0)
    made = inputs.open_sources(data, BYTES, tmp_path / "run")
    assert [(source.name, len(source)) for source in made.train] == [("a", 6), ("b", 4)]
    assert [(source.name, len(source)) for source in made.held_out] == [("held", 3)]
    assert made.weights == [2.0, 1.0]
    both = config(train, eval=data.eval, eval_fraction=0.01)
    made = inputs.open_sources(both, BYTES, tmp_path / "run")
    assert [(source.name, len(source)) for source in made.held_out] == [
        ("a", 1),
        ("b", 1),
        ("held", 3),
    ]
    clash = config(train, eval=(Source(name="a", path=str(tmp_path / "held")),))
    with pytest.raises(ValueError, match=r"is one of data\.train's"):
        inputs.open_sources(clash, BYTES, tmp_path / "run")


def test_runs_inside_the_documents_are_not_read(tmp_path):
    data = config(write_raw(tmp_path / "raw", 5))
    own, other = tmp_path / "raw/runs/own", tmp_path / "raw/runs/other"
    first = inputs.open_sources(data, BYTES, own / "data").train[0].digest
    for run in (own, other):
        run.mkdir(exist_ok=True)
        (run / "config.yaml").write_text("name: x")
        (run / "report.html").write_text("<p>losses</p>")
    manifest = dict.fromkeys(("config", "config_hash", "data", "start_checkpoint_digest"))
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert inputs.open_sources(data, BYTES, own / "data").train[0].digest == first


def test_a_prepared_folder_is_opened_where_it_is(tmp_path):
    write_raw(tmp_path / "raw", 20)
    prepare.prepare(tmp_path / "raw", tmp_path / "ready", tokenizer=BYTES, eval_fraction=0.2)
    made = inputs.open_sources(config(str(tmp_path / "ready")), BYTES, tmp_path / "run")
    assert made.train[0].folder == tmp_path / "ready"
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_is_refused(tmp_path):
    write_raw(tmp_path / "raw", 3)
    prepare.prepare(tmp_path / "raw", tmp_path / "ready", tokenizer=BYTES)
    other = tokenizers.load_tokenizer("mistral-common:v3")
    with pytest.raises(ValueError, match=r"prepared by the tokenizer 'bytes', but the model's is"):
        inputs.open_sources(config(str(tmp_path / "ready")), other, tmp_path / "run")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((Source(name="a", path="x"), Source(name="a", path="y")), "'a' twice"),
        ((Source(name="../a", path="x"),), "becomes a folder's name"),
        ((), "got none"),
        ("nowhere/at/all", "expected a file or a folder"),
        ("ftp://host/x", "got ftp://"),
    ],
)
def test_bad_sources_are_refused(tmp_path, train, message):
    with pytest.raises(ValueError, match=message):
        inputs.open_sources(config(train), BYTES, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_real_subword_tokens_make_the_text_again(tmp_path):
    tokenizer = tokenizers.load_tokenizer("mistral-common:v3")
    made = inputs.open_sources(config(write_raw(tmp_path / "raw", 4)), tokenizer, tmp_path / "run")
    for index in range(len(made.train[0])):
        example = made.train[0][index]
        assert tokenizer.decode(example.tokens.tolist()).startswith("document raw number")
        assert (example.tokens[0], example.tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
