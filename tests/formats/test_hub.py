"""formats/hub.py: checkpoints of a model hub, over real HTTP on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from mistral_jax import tokenizers
from mistral_jax.formats import checkpoint_files
from mistral_jax.formats import detect
from mistral_jax.formats import hub
from mistral_jax.formats import locate
from tests import checkpoint_on_disk
from tests import fake_hub

ROOT = Path(__file__).parents[2]
NAME = "org/tiny"
URI = f"hf://{NAME}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.Hub]:
    monkeypatch.setenv("MISTRAL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with fake_hub.serve() as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
            constants.ENDPOINT, served.endpoint
        )
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        served.repositories[NAME] = checkpoint_on_disk.files()
        locate.forget()
        yield served
    locate.forget()
    huggingface_hub.close_session()


def fetched(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_one_layout_of_the_weights_is_fetched_and_no_pickle(server):
    folder = locate.local_path(URI)
    assert fetched(folder) == {
        "config.json", "tokenizer.json", "tokenizer_config.json", checkpoint_on_disk.INDEX,
        *checkpoint_on_disk.SHARDS,
    }  # fmt: skip
    opened = detect.open_weights(folder)
    assert len(opened.entries()) == len(checkpoint_on_disk.tensors())
    assert not any("consolidated" in path or ".bin" in path for path in server.paths)
    server.paths.clear()
    assert locate.local_path(URI) == folder and not server.paths  # asked once in a process


def test_a_revision_is_a_branch_a_tag_or_a_commit(server):
    assert hub.fetch(f"{URI}@{fake_hub.COMMIT}").name == fake_hub.COMMIT
    assert hub.fetch(f"{URI}@refs%2Fpr%2F1").name == fake_hub.COMMIT
    with pytest.raises(hub.HubError, match=r"no revision 'v9'.*/org/tiny/tree/main"):
        hub.fetch(f"{URI}@v9")


def test_headers_cost_no_weights(server):
    files = server.repositories[NAME]
    big = b"\0" * (8 << 20)
    header = json.dumps({"a.weight": {"dtype": "U8", "shape": [len(big)],
                                      "data_offsets": [0, len(big)]}}).encode()  # fmt: skip
    shard = checkpoint_on_disk.SHARDS[1]
    index = json.loads(files[checkpoint_on_disk.INDEX])
    index["weight_map"] = {
        name: file for name, file in index["weight_map"].items() if file != shard
    } | {"a.weight": shard}
    files[checkpoint_on_disk.INDEX] = json.dumps(index).encode()
    files[shard] = len(header).to_bytes(8, "little") + header + big
    folder = locate.headers_path(URI)
    assert server.sent_bytes < 512 << 10
    assert (folder / shard).stat().st_size == len(files[shard])
    assert (folder / shard).stat().st_blocks * 512 < 1 << 20
    opened = detect.open_weights(folder)
    assert opened.shape("a.weight") == (len(big),)
    assert opened.decoder_config()["width"] == 32
    assert not (folder / "tokenizer.json").exists()
    assert (locate.headers_path(URI, has_text=True) / "tokenizer.json").is_file()


def test_a_tokenizer_alone_is_fetched_without_weights(server):
    found = tokenizers.load_tokenizer(URI)
    assert found.encode("text") == tokenizers.load_tokenizer(locate.local_path(URI)).encode("text")
    asked = server.paths[: next(i for i, path in enumerate(server.paths) if "00001" in path)]
    assert any("tokenizer.json" in path for path in asked)


def test_weights_that_are_here_serve_for_their_headers(server):
    folder = locate.local_path(URI)
    locate.forget()
    assert locate.headers_path(URI) == folder


def test_a_connection_that_breaks_off_goes_on_where_it_was(server, monkeypatch):
    files = server.repositories[NAME]
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4 << 10)
    server.cuts = 1
    folder = locate.local_path(URI)
    for shard in checkpoint_on_disk.SHARDS:
        assert (folder / shard).read_bytes() == files[shard]
    assert server.cuts == 0
    total = sum(len(files[shard]) for shard in checkpoint_on_disk.SHARDS)
    assert total <= server.sent_bytes <= total + (4 << 10)


def test_a_slow_hub_is_waited_for(server):
    server.wait_s = 0.05
    assert detect.open_weights(locate.local_path(URI)).kind == "hf"


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_names_its_page_and_the_login(server, status):
    server.refused[NAME] = (status, "GatedRepo")
    page = f"{server.endpoint}/{NAME}"
    with pytest.raises(hub.HubError, match=rf"gated; accept its terms on {page}.*hf auth login"):
        locate.local_path(URI)
    with pytest.raises(hub.HubError, match="gated"):
        locate.headers_path(URI)


def test_a_private_model_and_one_that_is_not_there_are_told_apart_from_a_gated_one(server):
    server.hidden["org/private"] = (401, "RepoNotFound")
    with pytest.raises(hub.HubError, match=r"private or gated, or there is none.*hf auth login"):
        locate.local_path("hf://org/private")
    with pytest.raises(hub.HubError, match="there is no such repository"):
        locate.local_path("hf://org/nothing")


def test_only_pickles_are_refused_with_the_conversion(server):
    server.repositories[NAME] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(checkpoint_files.CheckpointFilesError, match=r"only pickled.*safe_serializ"):
        locate.local_path(URI)


def test_a_gguf_file_is_named_where_there_are_several(server):
    server.repositories[NAME] = {"a.Q4_0.gguf": b"GGUF one", "a.Q8_0.gguf": b"GGUF two"}
    with pytest.raises(checkpoint_files.CheckpointFilesError, match=r"name one.*a\.Q4_0\.gguf"):
        locate.local_path(URI)
    path = locate.local_path(f"{URI}/a.Q8_0.gguf")
    assert path.read_bytes() == b"GGUF two" and fetched(path.parent) == {"a.Q8_0.gguf"}
    with pytest.raises(hub.HubError, match=r"no such file; it has: a\.Q4_0"):
        locate.local_path(f"{URI}/b.gguf")


def test_without_network_a_cached_copy_serves_and_else_the_way_by_hand_is_told(
    server, monkeypatch, tmp_path
):
    folder = locate.local_path(URI)
    locate.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate.local_path(URI) == folder == locate.headers_path(URI)
    (folder / checkpoint_on_disk.SHARDS[0]).unlink()
    locate.forget()
    by_hand = r"hf download org/tiny .*--exclude .* --local-dir tiny and give the folder tiny"
    with pytest.raises(hub.HubUnreachable, match=rf"HF_HUB_OFFLINE is set.*{by_hand}"):
        locate.local_path(URI)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(hub.HubUnreachable, match=rf"cannot be reached.*{by_hand}") as caught:
        locate.local_path(f"{URI}@v1")
    assert "--revision v1" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["hf://tiny", "hf://org/tiny/config.json", "hf://org/../x", "hf://", "hf://a/b/c/d"]
)
def test_a_wrong_name_is_refused_before_anything_is_asked(server, uri):
    with pytest.raises(hub.HubError):
        locate.local_path(uri)
    assert not server.paths


def test_plan_of_a_far_model_fetches_headers_only_and_imports_no_jax(server, tmp_path):
    code = (
        "import sys\n"
        "from mistral_jax import cli\n"
        "status = cli.main(sys.argv[1:])\n"
        "assert 'jax' not in sys.modules\n"
        "sys.exit(status)\n"
    )
    config = tmp_path / "far.yaml"
    config.write_text(
        f"name: far\nmodel: {{kind: checkpoint, weights: {URI!r}}}\n"
        "data: {train: docs, sequence_length: 8, global_batch_sequences: 1}\n"
        "optimizer: {learning_rate: 1e-3, max_steps: 1}\n",
        encoding="utf-8",
    )
    environment = os.environ | {
        "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home"),
        "MISTRAL_JAX_CACHE": str(tmp_path / "own"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", str(config), "--json"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_devices"] == 1
    assert not any("agent-harnesses" in path for path in server.paths)  # no telemetry
    assert sum("/cdn/" in path for path in server.paths) == len(checkpoint_on_disk.SHARDS)
