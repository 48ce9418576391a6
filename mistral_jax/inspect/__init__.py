"""What is this? A checkpoint of any format, an adapter, a run, prepared data, or a JSONL of chats.

Of a prepared corpus also: where does this row come from?

Reads headers, manifests and logs only, and starts no backend.
"""

from pathlib import Path

from rich.console import Console

from data_pipelines import sources
from mistral_jax.formats import locate
from mistral_jax.formats import peft
from mistral_jax.inspect import corpus
from mistral_jax.inspect import documents
from mistral_jax.inspect import model

JSONL_SUFFIXES = (".jsonl", ".ndjson")
WEIGHT_SUFFIXES = (".safetensors", ".gguf")
EXPECTED = (
    "a checkpoint (a folder, a .safetensors or a .gguf file), a PEFT adapter, a run directory, a "
    "prepared data folder or corpus, a row of one (OUT/code/train#17), or a .jsonl file"
)


def show(
    path: str | Path,
    *,
    num_rows: int = 2,
    row: str | None = None,
    tokenizer: str | None = None,
    console: Console | None = None,
) -> None:
    """Print what lies at a path.

    Args:
        path: see EXPECTED; also package:NAME, hf://, s3:// and gs:// of a checkpoint, of which
            only headers and text files are fetched.
        num_rows: documents to show of data.
        row: the id, or the beginning of the digest, of a row to trace in a prepared corpus.
        tokenizer: spells the tokens of data; by default the one that prepared it, where its name
            says where it is (a .jsonl file: bytes).
        console: where to print; standard output by default.

    Raises:
        ValueError: nothing that we know lies there, or it is damaged; the message says what.
    """
    console = console or Console()
    if (place := corpus.split_of(path)) is not None:
        corpus.show_index(*place, tokenizer, console)
        return
    is_uri = locate.scheme_of(path) is not None
    where = locate.headers_path(path, has_text=True) if is_uri else Path(path).expanduser()
    if not where.exists():
        raise ValueError(f"{where}: nothing is there; expected {EXPECTED}")
    if row is not None:
        corpus.show_row(where, row, tokenizer, console)
    elif corpus.is_corpus(where):
        corpus.show(where, console)
    elif (where / "config.yaml").is_file():
        model.show_run(where, num_rows, tokenizer, console)
    elif sources.is_prepared(where) and "splits" in sources.read_json(where / sources.MANIFEST):
        documents.show_prepared(where, num_rows, tokenizer, console)
    elif where.suffix in JSONL_SUFFIXES:
        documents.show_jsonl(where, num_rows, tokenizer or "bytes", console)
    elif (where / peft.CONFIG_NAME).is_file():
        model.show_adapter(where, console)
    elif _may_hold_weights(where):
        model.show_checkpoint(where, console)
    else:
        raise ValueError(f"{where}: not something that inspect knows; expected {EXPECTED}")


def _may_hold_weights(path: Path) -> bool:
    if path.is_file():
        return path.suffix in WEIGHT_SUFFIXES
    names = ("config.json", "params.json")
    return any((path / name).is_file() for name in names) or any(
        file.suffix in WEIGHT_SUFFIXES for file in path.iterdir()
    )
