"""NF4 and int8 against bitsandbytes on the CPU: codes, statistics, values."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mistral_jax.formats import nf4
from tests.peers import ours

pytestmark = pytest.mark.peers


def drawn() -> dict[str, np.ndarray]:
    """Return weights with outliers, odd sizes, zeros, and a bfloat16's values."""
    generator = np.random.default_rng(11)
    normal = generator.normal(0, 0.02, (768, 1536)).astype(np.float32)
    heavy = (generator.standard_t(3, (250, 192)) * 0.05).astype(np.float32)
    small = generator.normal(0, 1, (3, 64)).astype(np.float32)
    zeros = small.copy()
    zeros[1] = 0
    rounded = normal[:128].astype(ml_dtypes.bfloat16).astype(np.float32)
    return {"normal": normal, "heavy": heavy, "small": small, "zeros": zeros, "bfloat16": rounded}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Return what bitsandbytes made of the weights."""
    folder: Path = tmp_path_factory.mktemp("nf4")
    np.savez(folder / "weights.npz", **drawn())
    job = {"weights": str(folder / "weights.npz"), "out": str(folder / "golden.npz")}
    ours.run_peer("nf4_golden.py", job, folder)
    with np.load(folder / "golden.npz") as found:
        return dict(found)


@pytest.mark.parametrize("name", list(drawn()))
def test_nf4_is_that_of_bitsandbytes(name: str, golden: dict[str, np.ndarray]) -> None:
    array = drawn()[name]
    found = nf4.quantise(array)
    assert np.mean(found.codes == golden[f"{name}.codes"]) >= 0.9999
    assert np.mean(found.absmax == golden[f"{name}.searched_absmax"]) >= 0.9999
    searched = golden[f"{name}.searched_largest"].reshape(found.absmax.shape)
    np.testing.assert_allclose(found.largest(), searched, atol=1e-6)
    # bitsandbytes' table for CPUs is off by one entry near borders.
    table_codes = golden[f"{name}.absmax"]
    assert np.mean(found.absmax == table_codes) >= 0.99
    assert np.abs(found.absmax.astype(int) - table_codes).max() <= 1
    np.testing.assert_allclose(found.scales, golden[f"{name}.scales"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.offset, golden[f"{name}.offset"], rtol=1e-6)
    theirs = nf4.Nf4Weight(
        golden[f"{name}.codes"], table_codes, golden[f"{name}.scales"], golden[f"{name}.offset"]
    )
    np.testing.assert_allclose(theirs.largest(), golden[f"{name}.largest"], rtol=1e-6)
    np.testing.assert_allclose(nf4.dequantise(theirs), golden[f"{name}.values"], rtol=1e-6)
    values = nf4.dequantise(found)
    if name in ("normal", "bfloat16"):
        assert np.linalg.norm(values - array) / np.linalg.norm(array) <= 0.093


def test_the_dynamic_map_is_that_of_bitsandbytes(golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(nf4.DYNAMIC, golden["normal.map"], rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", ["normal", "heavy", "bfloat16"])
def test_int8_is_that_of_bitsandbytes(name: str, golden: dict[str, np.ndarray]) -> None:
    found = nf4.quantise_int8(drawn()[name])
    assert np.mean(found.codes == golden[f"{name}.int8_codes"]) >= 0.9999
    np.testing.assert_array_equal(found.absmax, golden[f"{name}.int8_absmax"])
