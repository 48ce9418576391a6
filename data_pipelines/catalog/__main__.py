"""The registry at the command line: list it, show an entry, write a sample, read some files.

python -m data_pipelines.catalog list
python -m data_pipelines.catalog show game_records
python -m data_pipelines.catalog sample game_records FOLDER
python -m data_pipelines.catalog read game_records FOLDER
"""

import argparse
import json
import sys
from pathlib import Path

from data_pipelines import catalog
from data_pipelines import readers
from data_pipelines.catalog import samples
from data_pipelines.corpus import row
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject


def main() -> int:
    """Do what the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.catalog", description=__doc__)
    parser.add_argument("verb", choices=("list", "show", "sample", "read"))
    parser.add_argument("name", nargs="?", default="", help="an entry of configs/data/sources.yaml")
    parser.add_argument("folder", nargs="?", default="", help="of sample and read")
    asked = parser.parse_args()
    if asked.verb in ("sample", "read") and not asked.folder:
        parser.error(f"{asked.verb} needs a NAME and a FOLDER")
    try:
        return _do(asked.verb, asked.name, asked.folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


def _do(verb: str, name: str, folder: str) -> int:
    if verb == "list":
        for entry in catalog.types().values():
            print(f"{entry.name:22} {entry.expert:11} {entry.kind:6} {entry.what}")
    elif verb == "show":
        print(json.dumps(catalog.type_of(name).model_dump(), indent=2, ensure_ascii=False))
    elif verb == "sample":
        for path in samples.write(name, folder):
            print(path)
    else:
        _read(name, folder)
    return 0


def _read(name: str, folder: str) -> None:
    """Print what a source of this type gives, a line of JSON for each document and reject."""
    entry, limits = catalog.type_of(name), Limits()
    files = readers.list_inputs(folder)
    with catalog.Decoders(limits) as decoders:
        for file in files:
            where = readers.name_of(file, Path(folder))
            if not catalog.takes(entry, where):
                continue
            for item in catalog.read_file(name, file, where, limits, decoders):
                if isinstance(item, Reject):
                    said = {"id": item.id, "reject": item.kind, "reason": item.reason}
                else:
                    said = {"id": item.id, "text": row.text_of(item), "facts": item.facts}
                print(json.dumps(said, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
