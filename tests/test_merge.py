"""The verb merge: PEFT folders and runs into their base, refusals, and little host memory."""

import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import mistral_jax as mj
from mistral_jax import cli
from mistral_jax import convert
from mistral_jax import export
from mistral_jax import manifest
from mistral_jax import merge
from mistral_jax import run_directory
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.config import model as model_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.models import weights
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
MIXTURE = model_config.MoeFfn(width=16, num_experts=4, num_groups=1, top_k=2)
SHAPES: dict[str, dict[str, Any]] = {"dense": {}, "mixtral": {"ffn": MIXTURE}}
ADAPTERS: dict[str, model_config.LowRankAdapter] = {
    "lora": model_config.LoraAdapter(rank=4, alpha=8.0, scaling="sqrt_rank"),
    "dora": model_config.DoraAdapter(rank=4, alpha=8.0),
}


@functools.cache
def bytes_tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.load_tokenizer("bytes")


def write_base(folder: Path, shape: str, *, seed: int = 0, **changes: Any) -> Path:
    fields = SHAPES[shape] | {"num_layers": 2} | changes
    config = tiny.decoder(bytes_tokenizer().vocab_size, **fields)
    generator = np.random.default_rng(seed)
    params = {
        path: (generator.normal(size=leaf.shape) * 0.1 + path.endswith("scale")).astype(np.float32)
        for path, leaf in definition_lib.define(config).shapes.items()
    }
    export.write_model(
        readers.TreeReader(params, config), folder, format="hf", dtype="float32",
        tokenizer=bytes_tokenizer(), name="base",
    )  # fmt: skip
    return folder


def write_adapter(
    folder: Path, base: Path, adapter: model_config.LowRankAdapter, **recorded: Any
) -> Path:
    """Write an adapter of the base that has moved; magnitudes are near the base's norms."""
    reader = weights.open_reader(base)
    definition = definition_lib.define(reader.config, adapter=adapter)
    generator = np.random.default_rng(2)
    moved = {}
    for path in definition.trainable_paths():
        shape = definition.shapes[path].shape
        moved[path] = (0.1 * generator.normal(size=shape)).astype(np.float32)
        if path.endswith("lora_magnitude"):
            kernel = reader.read(path.replace("lora_magnitude", "kernel"), ())
            moved[path] = np.linalg.norm(kernel, axis=-2) * generator.uniform(0.8, 1.2, shape)
    fields = {"base_model": str(base)} | recorded
    params = {path: jnp.asarray(value, jnp.float32) for path, value in moved.items()}
    export.write_adapter(params, reader.config, adapter, folder, **fields)
    return folder


@pytest.mark.parametrize(("shape", "kind"), [("dense", "dora"), ("mixtral", "lora")])
def test_a_merged_model_computes_what_base_and_adapter_do(
    shape: str, kind: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", shape)
    adapter = write_adapter(
        tmp_path / "adapter", base, ADAPTERS[kind], base_digest=manifest.weights_digest(base)
    )
    written = merge.merge(adapter, tmp_path / "merged")
    # Against the adapter beside its base; float32, as the base is.
    assert written.largest_logit_difference is not None
    assert written.largest_logit_difference < 2e-5
    assert convert.compare(str(base), str(tmp_path / "merged")) > 0.05
    assert weights.open_reader(tmp_path / "merged").dtype("embed/embedding") == np.float32
    with pytest.raises(ValueError, match="holds weights already"):
        merge.merge(adapter, tmp_path / "merged")


def test_the_verb_takes_a_base_and_a_dtype(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base(tmp_path / "base", "dense")
    adapter = write_adapter(tmp_path / "adapter", base, ADAPTERS["lora"], base_model="org/model")
    out = str(tmp_path / "merged")
    assert cli.main(["merge", str(adapter), out]) == 2
    assert "its base 'org/model' is not here; give the base's weights" in capsys.readouterr().err
    arguments = ["merge", str(adapter), out, "--base", str(base), "--dtype", "bfloat16"]
    assert cli.main(arguments) == 0
    assert "largest logit difference after reload" in capsys.readouterr().out
    assert weights.open_reader(Path(out)).dtype("embed/embedding").name == "bfloat16"


def test_an_adapter_of_another_base_is_refused_and_both_are_named(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "dense")
    digest = manifest.weights_digest(base)
    adapter = write_adapter(tmp_path / "adapter", base, ADAPTERS["lora"], base_digest=digest)
    wider = write_base(tmp_path / "wider", "dense", num_heads=8)
    with pytest.raises(ValueError, match=r"adapter does not fit the base .*wider: .*q_proj.*shape"):
        merge.merge(adapter, tmp_path / "out", base=wider)
    other = write_base(tmp_path / "other", "dense", seed=5)
    with pytest.raises(ValueError, match=r"adapter was trained on a base whose files are .*other"):
        merge.merge(adapter, tmp_path / "out", base=other)
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_architecture_is_refused(tmp_path: Path) -> None:
    shared = MIXTURE.model_copy(update={"num_shared_experts": 1})
    model = tiny.decoder(bytes_tokenizer().vocab_size, ffn=shared)
    run = load.load_run(
        ROOT / "configs" / "tiny" / "lora.yaml",
        ["adapter={kind: lora, rank: 4, alpha: 8, target_modules: [gate_proj]}"],
    ).model_copy(update={"model": model})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    run_directory.write_config(tmp_path / "run", run)
    base = write_base(tmp_path / "base", "mixtral")
    with pytest.raises(ValueError, match=r"shared/gate_proj/.*the base has no such projection"):
        merge.merge(tmp_path / "run", tmp_path / "out", base=base)


MEASURED = """
    import sys, threading, time
    from mistral_jax import merge

    peak = 0

    def watch():
        global peak
        while True:
            for line in open("/proc/self/status"):
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
            time.sleep(0.005)

    threading.Thread(target=watch, daemon=True).start()
    merge.merge(sys.argv[1], sys.argv[2])
    print("PEAK", peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_depth(tmp_path: Path) -> None:
    """Anonymous memory of a process that merges 2 and 14 layers, the parity number included."""
    peaks, sizes = {}, {}
    for depth in (2, 14):
        wide = {"width": 512, "ffn": model_config.DenseFfn(width=2048), "head_width": 128}
        base = write_base(tmp_path / f"base{depth}", "dense", num_layers=depth, **wide)
        adapter = write_adapter(tmp_path / f"adapter{depth}", base, ADAPTERS["lora"])
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MEASURED), adapter, tmp_path / f"out{depth}"],
            capture_output=True, text=True, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        peaks[depth] = int(done.stdout.rpartition("PEAK")[2])
        sizes[depth] = (base / "model.safetensors").stat().st_size
    layer = (sizes[14] - sizes[2]) / 12
    print(json.dumps({"layer": layer, "peaks": peaks, "sizes": sizes}))
    assert peaks[14] - peaks[2] < 3 * layer


@pytest.mark.slow
def test_a_dora_run_from_weights_trains_and_merges_like_its_export(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "dense")
    (tmp_path / "docs").mkdir()
    for number in range(30):
        (tmp_path / "docs" / f"{number}.txt").write_text(f"Document {number}. " * (20 + number))
    result = mj.train(
        ROOT / "configs" / "tiny" / "lora.yaml",
        f"data.train={tmp_path / 'docs'}", f"output={tmp_path / 'run'}", "data.tokenizer=bytes",
        f"model={{kind: checkpoint, weights: {base}}}", "data.sequence_length=32",
        "adapter={kind: dora, rank: 4, alpha: 8}", "optimizer.b_learning_rate_ratio=16",
        "optimizer.max_steps=2", "evaluate.every_steps=2", "evaluate.sample_prompts=[]",
        "data.global_batch_sequences=2",
    )  # fmt: skip
    merged = merge.merge(result.directory, tmp_path / "merged")
    assert merged.largest_logit_difference is not None
    assert merged.largest_logit_difference < 1e-4
    convert.export_model(
        str(result.directory), str(tmp_path / "exported"), format="hf", dtype="float32"
    )
    apart = convert.compare(str(tmp_path / "merged"), str(tmp_path / "exported"))
    assert apart < 1e-5
    folder = tmp_path / "peft"
    convert.export_model(str(result.directory), str(folder), format="peft", dtype="float32")
    again = merge.merge(folder, tmp_path / "again")
    assert again.largest_logit_difference is not None
    assert convert.compare(str(tmp_path / "merged"), str(tmp_path / "again")) < 1e-5
    other = write_base(tmp_path / "other", "dense", seed=3)
    for adapter in (result.directory, folder):
        with pytest.raises(ValueError, match="trained on a base whose files are"):
            merge.merge(adapter, tmp_path / "out", base=other)
