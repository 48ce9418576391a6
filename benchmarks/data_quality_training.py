"""Quality shown by training: the same tiny model at equal tokens on raw against prepared data.

Good documents are chosen by where they come from, not by our filters: Python's standard library
(without its tests) and the Markdown and reStructuredText of installed packages. A part of them,
whole packages, is held out; neither side trains on it, nor on what shares a tenth of its word
5-grams with it. Raw is the rest of the good documents and dirt: files of packages that are no
documents, as they lie on this machine (checksum lists, copied licences, minified scripts, generated
pages, tables), and what PLANTED describes. Prepared is what `prepare CONFIG` with its defaults
makes of raw. The model is configs/tiny/dense.yaml on bytes; three seeds; held-out loss as mean and
standard deviation, whatever comes out. `python -m benchmarks.data_quality_training`.
"""

import argparse
import codecs
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks import pretokenised
from mistral_jax import tokenizers
from mistral_jax.config import corpus as corpus_config

STDLIB, PACKAGES = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
GOOD_BYTES, DIRT_BYTES, MAX_FILE_BYTES = 6_000_000, 2_500_000, 200_000
MIN_BYTES = 400
HELD_OUT_SHARE = 0.15
MAX_SHARED = 0.1
NGRAM_WORDS = 5
NOT_GOOD = {"test", "tests", "idlelib", "encodings", "pydoc_data", "lib2to3", "site-packages"}
DIRT_SUFFIXES = {".js", ".css", ".html", ".csv", ".svg", ".txt", ""}
# Shares of the good documents that get each of them.
PLANTED = {
    "exact_copies": 0.30,  # each once more
    "near_copies": 0.10,  # 1 % of the words replaced
    "mojibake": 0.05,  # a copy with umlauts put in, its UTF-8 read as Latin-1, twice over
    "binary": 0.03,  # a copy compressed, its bytes read as Latin-1
    "page_frame": 0.15,  # in place: navigation, cookie and newsletter lines around it
    "personal": 0.05,  # in place: a list of names, addresses and telephones behind it
}
FRAME_TOP = "Skip to main content\nLog in\nSign up\nSubscribe\nWe use cookies to give you the best "
FRAME_TOP += "experience. Accept all cookies\n\n"
FRAME_END = "\n\nShare on Facebook\nShare on Twitter\nRead more\nRelated posts\nPrevious post\n"
FRAME_END += (
    "Next post\nSubscribe to our newsletter for weekly news!\nPrivacy policy\nTerms of use\n"
)
STEPS, SEQUENCE, ROWS = 300, 256, 8
EVAL_ROWS = 256
SEEDS = (0, 1, 2)


def good_documents() -> Iterator[tuple[str, str, str]]:
    """Yield (package, kind, text) of documents that people wrote to be read."""
    code = [
        path for path in STDLIB.rglob("*.py") if not NOT_GOOD & set(path.relative_to(STDLIB).parts)
    ]
    prose = [path for suffix in ("md", "rst") for path in PACKAGES.rglob(f"*.{suffix}")]
    for kind, root, paths in (("code", STDLIB, code), ("text", PACKAGES, prose)):
        for path in paths:
            text = _read(path)
            if text is not None:
                yield path.relative_to(root).parts[0].partition("-")[0], kind, text


def dirty_files() -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of files of packages that are no documents, as they are."""
    for path in PACKAGES.rglob("*"):
        is_it = path.suffix in DIRT_SUFFIXES or path.name.endswith(".min.js")
        if is_it and path.is_file() and (text := _read(path)) is not None:
            yield "code" if path.suffix in {".js", ".css"} else "text", text


def _read(path: Path) -> str | None:
    if not MIN_BYTES <= path.stat().st_size <= MAX_FILE_BYTES:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def _some(rows: list[Any], size_bytes: int, chance: random.Random) -> list[Any]:
    """Return rows by chance, up to a total size of their texts (the last item of each)."""
    rows = sorted(rows)
    chance.shuffle(rows)
    taken, size = [], 0
    for row in rows:
        if size >= size_bytes:
            break
        taken.append(row)
        size += len(row[-1].encode())
    return taken


def ngrams(text: str) -> set[int]:
    """Return the hashes of a text's word n-grams."""
    words = text.lower().split()
    return {
        zlib.crc32(" ".join(words[at : at + NGRAM_WORDS]).encode())
        for at in range(len(words) - NGRAM_WORDS + 1)
    }


def split(chance: random.Random) -> tuple[list[tuple[str, str]], list[str], dict[str, int]]:
    """Return the good documents to train on as (kind, text), the held-out texts, and counts."""
    good = _some(list(good_documents()), GOOD_BYTES, chance)
    packages = {name for name, _, _ in good}
    held = {name for name in packages if _share_of(name) < HELD_OUT_SHARE}
    held_out = sorted({text for name, _, text in good if name in held})
    seen = set().union(*map(ngrams, held_out))
    left = [(kind, text) for name, kind, text in good if name not in held]
    kept = [row for row in left if not _is_known(row[1], seen)]
    counts = {"good": len(kept), "held_out": len(held_out), "too_near": len(left) - len(kept)}
    return kept, held_out, counts


def _share_of(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") / 2**32


def _is_known(text: str, seen: set[int]) -> bool:
    own = ngrams(text)
    return bool(own) and len(own & seen) > MAX_SHARED * len(own)


def dirt(
    good: list[tuple[str, str]], held_out: list[str], chance: random.Random
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Return raw rows: the good ones, some of them changed, and the dirt; and counts of it."""
    counts: dict[str, int] = {}

    def chosen(name: str) -> list[int]:
        found = [at for at in range(len(good)) if chance.random() < PLANTED[name]]
        counts[name] = len(found)
        return found

    rows = list(good)
    more = [good[at] for at in chosen("exact_copies")]
    more += [(good[at][0], _near(good[at][1], chance)) for at in chosen("near_copies")]
    more += [(good[at][0], _mojibake(good[at][1])) for at in chosen("mojibake")]
    more += [("text", _binary(good[at][1])) for at in chosen("binary")]
    for at in chosen("page_frame"):
        rows[at] = (rows[at][0], FRAME_TOP + rows[at][1] + FRAME_END)
    for at in chosen("personal"):
        rows[at] = (rows[at][0], rows[at][1] + _people(chance))
    seen = set().union(*map(ngrams, held_out))
    real = _some(list(dirty_files()), DIRT_BYTES, chance)
    found = [row for row in real if not _is_known(row[1], seen)]
    counts["files_of_packages"] = len(found)
    rows += more + found
    chance.shuffle(rows)
    return rows, counts


def _near(text: str, chance: random.Random) -> str:
    words = text.split(" ")
    for at in chance.sample(range(len(words)), max(1, len(words) // 100)):
        words[at] = f"word{chance.randrange(10_000)}"
    return " ".join(words)


def _mojibake(text: str) -> str:
    umlauts = text.translate(str.maketrans({"a": "ä", "o": "ö", "u": "ü", "'": "’"}))
    for _ in range(2):
        umlauts = umlauts.encode().decode("latin-1")
    return umlauts


def _binary(text: str) -> str:
    return codecs.decode(zlib.compress(text.encode()), "latin-1")


def _people(chance: random.Random) -> str:
    def line() -> str:
        name = "".join(chance.choice("abcdefghijklmnoprstuvw") for _ in range(7))
        area, number = chance.randrange(201, 989), chance.randrange(10**7)
        phone = f"+1 {area} {number // 10_000:03d} {number % 10_000:04d}"
        return f"{name.title()} <{name}{chance.randrange(99)}@example-mail.com>, {phone}"

    return "\n\nContacts\n" + "\n".join(line() for _ in range(40)) + "\n"


def write_sides(folder: Path) -> dict[str, Any]:
    """Write raw, prepared and held-out as folders that a run reads; return what is in them."""
    from data_pipelines.corpus import build

    chance = random.Random(0)
    good, held_out, counts = split(chance)
    raw, planted = dirt(good, held_out, chance)
    tokenizer = tokenizers.load_tokenizer("bytes")

    def encoded(texts: Iterator[str]) -> Iterator[list[int]]:
        return (tokenizer.encode(text, bos=True, eos=True) for text in texts)

    sizes = {}
    for name, texts in (("raw", (text for _, text in raw)), ("held_out", iter(held_out))):
        sizes[name] = pretokenised.write_prepared(folder / name, encoded(texts), tokenizer)
    for kind in ("code", "text"):
        lines = [json.dumps({"text": text}) for each, text in raw if each == kind]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = build.build(_corpus(folder), folder / "prepared")
    entry = made.manifest["experts"]["general"]["train"]
    return {
        "good": counts,
        "dirt": planted,
        "raw": {"documents": len(raw), "tokens": sizes["raw"]},
        "prepared": {"documents": entry["documents"], "tokens": entry["tokens"]},
        "rejects": made.manifest["rejects"]["by_kind"],
        "batches": {key: made.manifest["batches"][key] for key in ("passed", "failed")},
        "held_out_tokens": sizes["held_out"],
    }


def _corpus(folder: Path) -> corpus_config.CorpusConfig:
    """Return the config of the prepared side: the product's defaults, nothing held out."""
    sources = [
        {"name": kind, "path": str(folder / f"{kind}.jsonl"), "kind": kind, "expert": "general"}
        for kind in ("code", "text")
    ]
    values = {"name": "quality", "output": "unused", "tokenizer": "bytes", "sources": sources}
    more = {"eval_fraction": 0.0, "readable": None, "max_bad_fraction": 0.5}
    return corpus_config.CorpusConfig.model_validate_json(json.dumps({**values, **more}))


def train(folder: Path, side: str, seed: int, num_steps: int) -> list[tuple[int, float]]:
    """Train on one side with one seed; return (step, held-out loss) as they came."""
    data = folder / ("prepared/general" if side == "prepared" else side)
    output = folder / f"run_{side}_{seed}"
    command = [
        sys.executable, "-m", "mistral_jax.cli", "train", "configs/tiny/dense.yaml",
        f"data.train={data}", f"data.eval=[{{name: clean, path: {folder / 'held_out'}}}]",
        f"data.sequence_length={SEQUENCE}", f"data.global_batch_sequences={ROWS}",
        f"optimizer.max_steps={num_steps}", f"evaluate.every_steps={max(1, num_steps // 3)}",
        f"evaluate.max_rows={EVAL_ROWS}", f"checkpoint.every_steps={num_steps}",
        f"seed={seed}", f"output={output}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"training failed:\n{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").open(encoding="utf-8")]
    return [(each["step"], each["loss"]) for each in lines if each.get("eval") == "clean"]


def main() -> None:
    """Make both sides, train, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = write_sides(folder)
        curves = {
            side: [train(folder, side, seed, options.steps) for seed in SEEDS[: options.seeds]]
            for side in ("raw", "prepared")
        }
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    last = {side: [curve[-1][1] for curve in each] for side, each in curves.items()}
    differences = [p - r for p, r in zip(last["prepared"], last["raw"], strict=True)]
    means = {side: statistics.mean(each) for side, each in last.items()}
    measure.report(
        "quality by training: held-out loss of a tiny model on prepared data, equal tokens",
        value=round(means["prepared"], 4),
        unit="nats / byte",
        peer="the same model on the raw data",
        peer_value=round(means["raw"], 4),
        ratio=round(means["prepared"] / means["raw"], 4),
        difference={
            "mean": round(statistics.mean(differences), 4),
            "by_seed": [round(each, 4) for each in differences],
            "deviation": round(statistics.stdev(differences), 4) if differences[1:] else None,
        },
        deviation={
            side: round(statistics.stdev(each), 4) if each[1:] else None
            for side, each in last.items()
        },
        curves={
            side: [[(step, round(loss, 4)) for step, loss in curve] for curve in each]
            for side, each in curves.items()
        },
        tokens_trained=options.steps * SEQUENCE * ROWS,
        sides=sides,
        planted=PLANTED,
        model="configs/tiny/dense.yaml (4 layers, width 128), bytes",
        n=options.seeds,
        cpu_s=round(spent.ru_utime + spent.ru_stime),
        command="python -m benchmarks.data_quality_training",
    )


if __name__ == "__main__":
    main()
