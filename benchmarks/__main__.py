"""Run every CPU row and write results/: `python -m benchmarks [ROW ...]`.

Each row is a process of its own. A row that fails its check writes nothing and fails the whole.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROWS = {
    "cross_entropy": ("cross_entropy.py",),
    "compile_time": ("compile_time.py",),
    "loader": ("loader.py",),
    "loop_overhead": ("loop_overhead.py",),
    "import_model": ("import_model.py",),
    "lora_step_1x256_float32": ("lora_step.py", "--shape", "1x256", "--dtype", "float32"),
    "lora_step_2x512_float32": ("lora_step.py", "--shape", "2x512", "--dtype", "float32"),
    "lora_step_1x256_bfloat16": ("lora_step.py", "--shape", "1x256", "--dtype", "bfloat16"),
    "lora_step_2x512_bfloat16": ("lora_step.py", "--shape", "2x512", "--dtype", "bfloat16"),
    "dense_step": ("dense_step.py",),
    "moe_8x2": ("moe_step.py", "--experts", "8", "--top-k", "2", "--hidden", "512"),
    "moe_64x6": ("moe_step.py", "--experts", "64", "--top-k", "6", "--hidden", "256"),
    "nf4_matmul_2048_float32": ("nf4.py", "matmul", "--width", "2048", "--dtype", "float32"),
    "nf4_matmul_2048_bfloat16": ("nf4.py", "matmul", "--width", "2048", "--dtype", "bfloat16"),
    "nf4_matmul_4096_float32": ("nf4.py", "matmul", "--width", "4096", "--dtype", "float32"),
    "nf4_matmul_4096_bfloat16": ("nf4.py", "matmul", "--width", "4096", "--dtype", "bfloat16"),
    "nf4_step_1x256_float32": ("nf4.py", "step"),
    "decode": ("decode.py",),
    "curriculum": ("curriculum.py",),
    "corpus_engine": ("corpus_engine.py",),
    "corpus_memory": ("corpus_memory.py",),
    "pdf_pages": ("pdf_pages.py", "--pages", "6000"),
    "pretokenised": ("pretokenised.py",),
    "data_quality_training": ("data_quality_training.py",),
    "projection": ("projection.py",),
}
FOLDER = Path(__file__).resolve().parent
# As ./run sets it; the peers inherit it too.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}


def main(names: list[str]) -> int:
    """Run the named rows, or all, one after the other."""
    if unknown := [name for name in names if name not in ROWS]:
        print(f"no row {unknown[0]!r}; known: {', '.join(ROWS)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or ROWS:
        script, *arguments = ROWS[name]
        command = [sys.executable, "-m", f"benchmarks.{Path(script).stem}", *arguments]
        done = subprocess.run(
            command, cwd=FOLDER.parent, stdout=subprocess.PIPE, env=ENVIRONMENT, check=False
        )
        if done.returncode:
            failed.append(name)
            continue
        line = json.loads(done.stdout.decode().splitlines()[-1])
        text = json.dumps(line, indent=2) + "\n"
        (FOLDER / "results" / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}: {line['value']} {line['unit']}, ratio {line['ratio']}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
