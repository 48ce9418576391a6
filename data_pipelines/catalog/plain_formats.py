"""What `prepare` reads of a folder, as one of the registry's entries."""

from data_pipelines import readers
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf


def read_documents(leaf: Leaf) -> Items:
    """Yield PDF, Markdown, text, source code, HTML, JSONL, Parquet as readers.py does."""
    yield from readers.read_document(
        leaf.name, leaf.path, leaf.stream, leaf.limits, leaf.decoders.pdf
    )
