"""The committed compile reports: the plan's closed form against them, and the page they make."""

import json
from pathlib import Path

import pytest

from benchmarks import scale

REPORTS = sorted(scale.RESULTS.glob("*.json"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_at_least_five_named_pairs_were_compiled() -> None:
    assert len(REPORTS) >= 5


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_the_closed_form_is_within_a_percent_in_arguments_and_a_quarter_in_all(
    path: Path,
) -> None:
    memory = read(path)["memory"]
    # Arguments come back as outputs, in the same place.
    assert memory["predicted_arguments"] == pytest.approx(memory["arguments"], rel=0.01)
    assert memory["aliased"] == pytest.approx(memory["outputs"], rel=0.01)
    assert memory["predicted_total"] == pytest.approx(memory["total"], rel=0.25)


def test_the_671b_steps_fit_and_at_4k_with_a_tenth_to_spare() -> None:
    for config, target in scale.SHOWN:
        memory = scale._read(config, target)["memory"]
        share = memory["total"] / memory["available"]
        assert share <= (0.9 if config.endswith("671b") else 1.0), (config, target, share)


def test_programs_do_not_grow_with_depth_or_devices() -> None:
    small, large = (scale._read("msem/msem_671b", target) for target in ("v5p_2048", "v5p_8192"))
    assert abs(small["num_equations"] - large["num_equations"]) < 0.05 * small["num_equations"]


def test_the_page_is_what_the_reports_say() -> None:
    assert scale.PAGE.read_text(encoding="utf-8") == scale.page()
