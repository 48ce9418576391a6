"""Adapters from the command line and from where they lie; those of another base are refused."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

import mistral_jax as mj
from mistral_jax import adapter_set
from mistral_jax import chat
from mistral_jax import cli
from mistral_jax import manifest
from mistral_jax import merge
from mistral_jax.formats import peft
from tests import buckets
from tests import test_merge

WORDS = ("The harbour", "--max-tokens", "6", "--raw")


@dataclasses.dataclass(frozen=True)
class Folders:
    """A base, its adapter, and two other bases: of other numbers, of another shape."""

    base: Path
    adapter: Path
    other: Path
    wider: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("adapters")
    base = test_merge.write_base(root / "base", "dense")
    return Folders(
        base,
        test_merge.write_adapter(
            root / "adapter", base, test_merge.ADAPTERS["lora"],
            base_digest=manifest.weights_digest(base),
        ),
        test_merge.write_base(root / "other", "dense", seed=5),
        test_merge.write_base(root / "wider", "dense", num_heads=8),
    )  # fmt: skip


@pytest.fixture(scope="module")
def text(folders: Folders) -> str:
    """Return what base and adapter say to WORDS, in Python; the base alone says something else."""
    adapted = mj.load(str(folders.base), adapters={"a": folders.adapter})
    alone = mj.load(str(folders.base))
    found, bare = (
        mj.generate(model, [WORDS[0]], max_tokens=6, is_raw=True)[0] for model in (adapted, alone)
    )
    assert found.tokens != bare.tokens
    return found.text


def test_generate_and_chat_put_an_adapter_on_the_base(
    folders: Folders,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = ["--adapter", str(folders.adapter)]
    assert cli.main(["generate", str(folders.base), *WORDS, *adapter]) == 0
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{WORDS[0]}\n"))
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["chat", str(folders.base), *WORDS[1:], *adapter]) == 0
    assert chat.answer_line(text).plain.rstrip() in capsys.readouterr().out


def test_the_tokens_are_those_of_the_merged_export(folders: Folders, tmp_path: Path) -> None:
    merge.merge(folders.adapter, tmp_path / "merged")
    beside = mj.load(str(folders.base), compute="float32", adapters={"a": folders.adapter})
    merged = mj.load(str(tmp_path / "merged"), compute="float32")
    prompts = ["The harbour", "lies in", "1987"]
    expected, found = (
        [each.tokens for each in mj.generate(model, prompts, max_tokens=12, is_raw=True)]
        for model in (merged, beside)
    )
    assert found == expected
    assert len({tuple(tokens) for tokens in found}) > 1


def test_an_adapter_in_a_bucket_is_fetched(
    folders: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = mj.load(str(folders.base), adapters={"a": folders.adapter})
    with buckets.fake(tmp_path, monkeypatch) as store:
        buckets.put_folder(store, folders.base, "models/base")
        buckets.put_folder(store, folders.adapter, "models/adapter")
        there = mj.load("s3://models/base", adapters={"a": "s3://models/adapter"})
        for path, value in here.adapters["a"].items():
            np.testing.assert_array_equal(there.adapters["a"][path], value, err_msg=path)
        words = ["generate", "s3://models/base", *WORDS, "--adapter", "s3://models/nothing"]
        assert cli.main(words) == 2
        assert "s3://models/nothing: there are no files" in capsys.readouterr().err


def test_what_is_no_adapter_or_another_bases_is_refused_in_one_line(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(base: Path, adapter: str | Path) -> str:
        assert cli.main(["generate", str(base), *WORDS, "--adapter", str(adapter)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "adapter 'nowhere': no such folder; expected a PEFT folder" in refused(
        folders.base, "nowhere"
    )
    assert "neither adapter_config.json nor a run is there" in refused(folders.base, folders.base)
    said = refused(folders.other, folders.adapter)
    assert "was trained on a base whose files are" in said and str(folders.other) in said
    said = refused(folders.wider, folders.adapter)
    assert "does not fit the base" in said and "expected shape" in said
    (tmp_path / peft.CONFIG_NAME).write_text("{")
    assert "not valid JSON" in refused(folders.base, tmp_path)


def test_a_saved_adapter_records_its_base(folders: Folders, tmp_path: Path) -> None:
    model = mj.load(str(folders.base), compute="float32")
    mj.save(mj.adapt(model, rank=2, alpha=4), tmp_path / "saved", format="peft")
    settings = peft.AdapterFile(tmp_path / "saved").settings
    assert settings.base_digest == manifest.weights_digest(folders.base)
    assert settings.base_model == str(folders.base)
    assert mj.load(str(folders.base), adapters={"again": tmp_path / "saved"}).adapters
    with pytest.raises(ValueError, match=r"trained on a base whose files are .*other has model"):
        mj.load(str(folders.other), adapters={"again": tmp_path / "saved"})


def test_an_adapter_on_a_model_without_files_names_no_base(
    folders: Folders, tmp_path: Path
) -> None:
    """As after a run that trained whole: the weights that it began from are not the base."""
    drawn = dataclasses.replace(mj.load(str(folders.base), compute="float32"), weights_path=None)
    mj.save(mj.adapt(drawn, rank=2, alpha=4), tmp_path / "saved", format="peft")
    settings = peft.AdapterFile(tmp_path / "saved").settings
    assert (settings.base_digest, settings.base_model) == (None, "")
    with pytest.raises(ValueError, match="that a run trained whole has none"):
        adapter_set.open_adapters(drawn, {"a": folders.adapter})
