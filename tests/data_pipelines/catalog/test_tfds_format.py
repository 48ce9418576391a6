"""A prepared TFDS folder is read shard by shard, without tensorflow."""

import json
import sys
from pathlib import Path

import pytest
from array_record.python import array_record_module

from data_pipelines import catalog
from data_pipelines.documents import Document
from data_pipelines.documents import Limits

SHARD = "lights-train.array_record-00000-of-00001"


def prepare(folder: Path) -> Path:
    """Write a folder as TFDS does, with three examples; return its shard."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "language": tfds.features.Text()}
    )
    writer = array_record_module.ArrayRecordWriter(str(folder / SHARD), "group_size:1")
    for text in ("eins", "zwei", "  "):
        writer.write(features.serialize_example({"text": text, "language": "de"}))
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        dataset_name="lights", split="train", filetype_suffix="array_record", data_dir=folder
    )
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=[3], num_bytes=0, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=[split], check_data=False
    )
    info = folder / "dataset_info.json"
    described = json.loads(info.read_text())
    info.write_text(json.dumps({**described, "redistributionInfo": {"license": "CC0-1.0"}}))
    return folder / SHARD


def test_a_tfds_folder_is_read_without_tensorflow(tmp_path):
    (tmp_path / "lights").mkdir()
    shard = prepare(tmp_path / "lights")
    with catalog.Decoders(Limits()) as decoders:
        items = list(catalog.read_file("tfds", shard, shard.name, Limits(), decoders))
        kinds = []
        (tmp_path / SHARD).write_bytes(b"no shard")
        for features in ("", '{"pythonClassName": "this.Spacecraft"}'):
            (tmp_path / "features.json").write_text(features)
            alone = catalog.read_file("tfds", tmp_path / SHARD, SHARD, Limits(), decoders)
            kinds += [each.kind for each in alone]
    facts = {"licence": "CC0-1.0", "language": "de"}
    read = {each.text: each.facts for each in items if isinstance(each, Document)}
    assert read == {"eins": facts, "zwei": facts}
    assert [each.kind for each in items if not isinstance(each, Document)] == ["empty"]
    assert kinds == ["bad_tfds", "unsafe_features"]
    assert "tensorflow" not in sys.modules
