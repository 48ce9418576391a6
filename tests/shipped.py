"""The configs that ship: those of runs; corpora and the registry of their sources lie in data/."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN_CONFIGS = [
    path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "data"
]
CORPUS_CONFIGS = [
    path for path in sorted((ROOT / "configs" / "data").glob("*.yaml")) if path.stem != "sources"
]
