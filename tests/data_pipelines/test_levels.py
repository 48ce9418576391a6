"""Five names for each expert; levels.npy: what is refused, and that the manifest guards it."""

import numpy as np
import pytest

from data_pipelines import levels
from data_pipelines.corpus import row


def test_each_expert_has_five_names_of_its_own() -> None:
    assert tuple(levels.NAMES) == row.EXPERTS
    assert all(len(set(names)) == levels.NUM_LEVELS for names in levels.NAMES.values())
    assert levels.name_of("code", 2) == "algorithms"
    assert levels.name_of("docs", 2) == "level_2"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (np.array([0, 1], np.uint8), "each of 3 documents, got uint8 of shape"),
        (np.array([0, 1, 2]), "got int64"),
        (np.array([0, 2, 1], np.uint8), "out of order"),
        (np.array([0, 1, 5], np.uint8), "values up to 5"),
    ],
)
def test_levels_of_another_shape_order_or_range_are_refused(tmp_path, found, words) -> None:
    np.save(tmp_path / levels.FILE, found)
    with pytest.raises(ValueError, match=words):
        levels.read(tmp_path, 3)


def test_levels_come_back_and_none_where_there_is_no_file(tmp_path) -> None:
    assert levels.read(tmp_path, 3) is None
    levels.write(tmp_path, np.array([0, 3, 3], np.uint8))
    assert levels.read(tmp_path, 3).tolist() == [0, 3, 3]
    (tmp_path / levels.FILE).write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="cannot be read"):
        levels.read(tmp_path, 3)
