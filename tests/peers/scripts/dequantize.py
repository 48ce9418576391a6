"""Dequantises every tensor of a GGUF file with the gguf package and writes digests, as JSON."""

import hashlib
import json
import pathlib
import sys

import gguf
import numpy as np


def main() -> None:
    """Write {tensor: [type, shape, sha256 of its float32 bytes]}."""
    job = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = {}
    for tensor in gguf.GGUFReader(job["path"]).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        values = np.ascontiguousarray(values, np.float32)
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        found[tensor.name] = [tensor.tensor_type.name, [int(n) for n in values.shape], digest]
    pathlib.Path(job["out"]).write_text(json.dumps(found), encoding="utf-8")


main()
