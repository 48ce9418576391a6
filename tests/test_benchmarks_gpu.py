"""benchmarks/gpu.py at toy shapes: every row runs, its checks can fail, one row cannot end the run.

No GPU and no torch here; the test marked `peers` runs all rows beside torch on the CPU.
"""

import dataclasses
import json
import math
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu
from benchmarks import measure
from benchmarks.gpu_rows import attention
from benchmarks.gpu_rows import cross_entropy
from benchmarks.gpu_rows import decode
from benchmarks.gpu_rows import dense
from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import hashed
from benchmarks.gpu_rows import limits
from benchmarks.gpu_rows import lora
from benchmarks.gpu_rows import mixture
from benchmarks.gpu_rows import prefill
from benchmarks.gpu_rows import qlora
from mistral_jax.generate import engine
from mistral_jax.nn import attention as attention_lib
from mistral_jax.nn import experts

MODULES = {
    "limits": limits,
    "attention": attention,
    "cross_entropy": cross_entropy,
    "mixture": mixture,
    "dense": dense,
    "lora": lora,
    "qlora": qlora,
    "prefill": prefill,
    "decode": decode,
}
QUICK_ROWS = ("limits", "cross_entropy", "mixture")
TINY = device.Machine(
    is_tiny=True, platform="cpu", kind="cpu", memory_gib=math.inf, gemm_tflops=1.0,
    copy_gb_per_s=20.0,
)  # fmt: skip
# Numbers in a peer's sample of each row's outputs.
SAMPLED = {"matmul": (128, 128), "loss": (96, 32)}


class WrongPeer:
    """A peer that answers everything, and computes something else."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, operation: str, **fields) -> dict:
        """Return an answer of the right form."""
        self.asked.append(operation)
        shape = SAMPLED.get(operation, (1,))
        length = fields.get("length", 1)
        wave = np.sin(np.arange(length)).tolist()
        return {
            "name": "wrong",
            "sample": device.sample(jnp.ones(shape)),
            "loss": 5.5,
            "token_losses": wave,
            "losses": [5.5] * 3,
            "grad_norms": [1.0] * 3,
            "logits": np.sin(np.arange(256)).tolist(),
        }

    def timer(self, what: str):
        """Return a round that takes no time to speak of."""
        return lambda: 1e-3 if what else 0.0

    def close(self) -> None:
        """End it."""


def no_peer(monkeypatch: pytest.MonkeyPatch, script: str) -> device.Peer:
    """Return the peer of a machine without torch."""
    monkeypatch.setenv(measure.PEERS_PYTHON, "/nowhere/python")
    return device.Peer(script, TINY)


# The others take the time of the peers' suite.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK_ROWS else pytest.mark.peers) for name in MODULES],
)
def test_a_row_runs_and_names_its_missing_peer(name, monkeypatch):
    """Numbers without a peer are still numbers."""
    module = MODULES[name]
    lines = list(module.lines(TINY, no_peer(monkeypatch, module.SCRIPT)))
    measured = [line for line in lines if not line.get("skipped")]
    assert measured
    assert [line["error"] for line in lines] == [None] * len(lines)
    for line in measured:
        assert line["value"] > 0
        assert "/nowhere/python" in line["peer"]
        assert line["peer_value"] is None and line["ratio"] is None
        assert line["n"] == TINY.rounds
        json.dumps(line)


@pytest.mark.parametrize("name", ["limits", "cross_entropy", "dense", "prefill"])
def test_a_peer_that_computes_something_else_stops_the_timing(name):
    """No line but the copy's, which has no numbers to compare, gets past a wrong peer."""
    peer = WrongPeer()
    lines = [line for line in MODULES[name].lines(TINY, peer) if not line.get("skipped")]
    checked = [line for line in lines if line.get("case") != limits.COPY]
    assert checked and peer.asked
    for line in checked:
        assert line["error"].startswith("CheckError"), line


def test_attention_that_differs_from_the_definition_is_not_timed(monkeypatch):
    """The oracle stands without torch too."""

    def wrong(q, k, v, spec, **named):
        return attention_lib.banded.attend(q, k, v, dataclasses.replace(spec, reach=20), **named)

    monkeypatch.setitem(attention_lib.IMPLEMENTATIONS, "sdpa", wrong)
    lines = list(attention.lines(TINY, no_peer(monkeypatch, attention.SCRIPT)))
    for line in lines:
        is_wrong = "sdpa" in line["metric"]
        assert (line["error"] or "").startswith("CheckError") == is_wrong, line


def test_a_mixture_that_differs_from_all_experts_is_not_timed(monkeypatch):
    """A gradient that is wrong alone is enough."""
    monkeypatch.setitem(
        experts.IMPLEMENTATIONS,
        "blocks",
        lambda x, choice, kernels, **_: 1.01 * experts.IMPLEMENTATIONS["all"](x, choice, kernels),
    )
    found = {line["implementation"] if "implementation" in line else line["metric"]: line
             for line in mixture.lines(TINY, no_peer(monkeypatch, mixture.SCRIPT))}  # fmt: skip
    assert found["ragged"]["error"] is None
    wrong = [line for line in found.values() if "blocks, forward" in line["metric"]]
    assert wrong[0]["error"].startswith("CheckError")


def test_decoding_that_differs_from_a_pass_without_a_cache_is_not_timed(monkeypatch):
    """Tokens that nobody would choose show."""
    real = engine.generate_tokens

    def wrong(*arguments, **named):
        found = real(*arguments, **named)
        return dataclasses.replace(found, tokens=[[7] * len(row) for row in found.tokens])

    monkeypatch.setattr(decode, "NEAR_TIE", 0.05)  # toy logits lie close together
    monkeypatch.setattr(engine, "generate_tokens", wrong)
    (line,) = decode.lines(TINY, no_peer(monkeypatch, decode.SCRIPT))
    assert line["error"].startswith("CheckError")


def test_check_refuses_what_is_not_a_number():
    """NaN is not close to anything."""
    with pytest.raises(device.CheckError, match="apart from the oracle"):
        device.check("x", [math.nan, 1.0], [1.0, 1.0], 0.5)
    with pytest.raises(device.CheckError, match="3 numbers against 2"):
        device.check("x", [1.0, 1.0, 1.0], [1.0, 1.0], 0.5)
    assert device.check("x", [1.0, 2.0], [1.0, 2.0], 0.0) == 0.0


def test_hashed_numbers_equal_the_formula_in_exact_integers():
    """What a peer has to reproduce: Python's integers, one number at a time."""

    def mixed(x: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ x >> shift) * factor % 2**32
        return x ^ x >> 16

    def one(name: str, index: int) -> float:
        bits = mixed(mixed(index) ^ zlib.crc32(name.encode())) >> 8
        return (bits * 2.0**-23 - 1) * 0.5 * 3**0.5

    found = np.asarray(hashed.array("w", (3, 5), scale=0.5, dtype=np.float32))
    np.testing.assert_allclose(found.ravel(), [one("w", i) for i in range(15)], rtol=1e-6)
    stacked = np.asarray(hashed.stack("w", (2, 3, 5), scale=0.5, dtype=np.float32))
    np.testing.assert_allclose(stacked[1].ravel(), [one("w:1", i) for i in range(15)], rtol=1e-6)
    many = np.asarray(hashed.array("many", (4096,), scale=2.0, dtype=np.float32))
    assert abs(many.mean()) < 0.1
    assert abs(many.std() - 2.0) < 0.05


def test_flops_of_a_prompt_count_the_head_once():
    """A toy by hand: matmuls of every token, visible pairs, one row of logits."""
    config = prefill.shapes.TINY
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    pairs = 96 * 97 / 2
    by_hand = 2 * 2 * layer * 96 + 4 * pairs * 64 * 2 + 2 * 64 * 256
    assert prefill.flops(config, 96) == pytest.approx(by_hand, rel=1e-12)


def test_visible_pairs_are_those_of_the_mask():
    """The closed form against the mask that the oracle uses."""
    for case, _ in attention.cases(TINY):
        seen = attention.visible(case, np.arange(case.num_tokens))
        assert case.num_pairs == seen.sum()


def test_rows_are_refused_for_time_and_memory():
    """Each with the reason."""
    row = gpu.ROWS["dense"]
    assert gpu.refusal(row, 139.0, 500.0) is None
    assert "out of time" in gpu.refusal(row, 139.0, 10.0)
    assert "here are 22.4" in gpu.refusal(row, 22.4, 500.0)


def test_the_estimates_leave_room_for_most_rows():
    """By the guesses, all rows end within nine minutes."""
    estimates = [row.estimate_s for row in gpu.ROWS.values()]
    assert sum(estimates) < 9 * 60
    assert set(gpu.ROWS) == {*MODULES, "compiling"}


def test_one_run_writes_one_json(tmp_path, capsys, monkeypatch):
    """A row in a process of its own, a row that crashes, a row that comes too late."""
    monkeypatch.setenv(measure.PEERS_PYTHON, "/nowhere/python")
    monkeypatch.setattr(
        gpu,
        "ROWS",
        {
            "limits": gpu.Row("limits", 30, 0),  # with the patience for a busy machine: 90 s
            "absent": gpu.Row("P0", 1, 0),
            "late": gpu.Row("P0", 10_000, 0),
        },
    )
    path = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--minutes", "3", "--out", str(path)]) == 1
    report = json.loads(path.read_text(encoding="utf-8"))
    found = {line["metric"]: line for line in report["rows"]}
    assert found["matmul 128^3, float32"]["value"] > 0
    assert "absent" in found["absent"]["error"]
    assert "out of time" in found["late"]["skipped"]
    assert report["device"] == "cpu" and report["is_tiny"]
    assert {"jax", "python", "numpy"} <= set(report["versions"])
    printed = capsys.readouterr().out
    assert "absent: FAILED" in printed and "3 lines" not in printed


def test_a_row_that_takes_too_long_is_stopped():
    """Its line says after how long."""
    result = gpu.run_row("limits", is_tiny=True, peaks={}, limit_s=0.2)
    assert result["lines"][-1]["error"] == "stopped after 0 s"


def test_without_a_gpu_the_full_shapes_are_refused(tmp_path, monkeypatch, capsys):
    """Nothing is started."""
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert "--tiny runs anywhere" in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.peers
def test_every_row_agrees_with_torch(tmp_path):
    """All rows at toy shapes on the CPU; every line but the compile times has a ratio."""
    path = tmp_path / "gpu.json"
    code = gpu.main(["--tiny", "--minutes", "20", "--out", str(path)])
    report = json.loads(path.read_text(encoding="utf-8"))
    assert code == 0, [line["error"] for line in report["rows"] if line["error"]]
    for line in report["rows"]:
        if line.get("skipped") or line["row"] == "compiling":
            continue
        assert line["ratio"] > 0, line
    assert report["versions"]["torch"]
    compiled = [line["value"] for line in report["rows"] if line["row"] == "compiling"]
    assert compiled[1] < compiled[0]
