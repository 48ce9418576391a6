"""A hundred kills at random instants of all stages: the same bytes, and no part made twice."""

import pytest

from tests.data_pipelines.corpus import killing

pytestmark = pytest.mark.slow

NUM_KILLS = 100


def test_a_hundred_kills_change_nothing(tmp_path):
    shop = killing.Workshop(tmp_path, seed=20261121)
    while sum(shop.kills.values()) < NUM_KILLS:
        shop.round(kills=6)
    print(dict(shop.kills), shop.checked_parts)
    assert all(shop.kills[stage] >= 5 for stage in ("map", "join", "encode", "publish"))
    assert shop.checked_parts > NUM_KILLS
