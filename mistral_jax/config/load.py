"""YAML and `a.b=c` overrides in, a validated RunConfig out; every mistake named by its path.

YAML is read as YAML 1.2 reads numbers and booleans (`2e-4` is a number, `no` is a string), and
duplicate keys are refused. A file may name one parent with `base:`.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Any
from typing import cast

import yaml
from pydantic import BaseModel
from pydantic import ValidationError

from mistral_jax.config.run import RunConfig

MAX_YAML_BYTES = 1 << 20
ALIASES = {
    "lr": "optimizer.learning_rate",
    "learning_rate": "optimizer.learning_rate",
    "lora_r": "adapter.rank",
    "r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target_modules": "adapter.target_modules",
    "use_rslora": "adapter.scaling",
    "use_dora": "adapter.kind",
    "loraplus_lr_ratio": "optimizer.b_learning_rate_ratio",
    "max_seq_length": "data.sequence_length",
    "max_length": "data.sequence_length",
    "sequence_len": "data.sequence_length",
    "seq_len": "data.sequence_length",
    "per_device_train_batch_size": "data.global_batch_sequences",
    "gradient_accumulation_steps": "data.global_batch_sequences",
    "micro_batch_size": "data.global_batch_sequences",
    "batch_size": "data.global_batch_sequences",
    "save_steps": "checkpoint.every_steps",
    "eval_steps": "evaluate.every_steps",
    "num_train_epochs": "data.epochs",
    "num_epochs": "data.epochs",
    "warmup_ratio": "optimizer.warmup_steps",
    "output_dir": "output",
    "base_model": "model.weights",
    "model_name_or_path": "model.weights",
    "model_id_or_path": "model.weights",
    "max_grad_norm": "optimizer.max_grad_norm",
    "weight_decay": "optimizer.weight_decay",
    "datasets": "data.train",
    "dataset": "data.train",
}


class ConfigError(ValueError):
    """A mistake in a config file or an override; the message is one line per mistake."""


class _Yaml12Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars, no aliases and no duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ConfigError(f"line {mark.line + 1}: YAML aliases are not supported; write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"line {line}: a key should be a name, got a list or a mapping")
            if key in seen:
                raise ConfigError(f"line {line}: key {key!r} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# Plain values only: a tag such as !!timestamp or !!binary finds no constructor.
_Yaml12Loader.yaml_constructors = {
    tag: function
    for tag, function in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "str", "seq", "map")
}
_Yaml12Loader.yaml_implicit_resolvers = {}
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")
)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)
_Yaml12Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(str(loader.construct_scalar(cast(Any, node))), 10),
)
_Yaml12Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(str(loader.construct_scalar(cast(Any, node)))),
)


def parse_yaml(text: str, *, where: str) -> Any:
    """Parse one YAML document as plain values.

    Args:
        text: the document.
        where: its name, for messages.

    Raises:
        ConfigError: it does not parse, repeats a key, or uses aliases; with line numbers.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ConfigError(f"{where}: {len(text)} bytes; a config has at most {MAX_YAML_BYTES}")
    loader = _Yaml12Loader(text)
    try:
        return loader.get_single_data()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:  # ValueError, KeyError: !!int x
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    finally:
        loader.dispose()


def read_tree(path: str | Path, *, children: tuple[Path, ...] = ()) -> dict:
    """Read a YAML file and its `base:` parent (one, relative to it) into one mapping.

    Args:
        path: the file.
        children: the files whose parent it is, to notice a circle.

    Raises:
        ConfigError: a file is missing or not a mapping, or the parents go round in a circle.
    """
    path = Path(path)
    if path.resolve() in children:
        shown = " -> ".join(each.name for each in (*children, path))
        raise ConfigError(f"{path}: base: goes round in a circle, {shown}; take one of them away")
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file{_nearby_files(path)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    tree = parse_yaml(text, where=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: should be the path of one file, got {base!r}")
    parent_tree = read_tree(path.parent / base, children=(*children, path.resolve()))
    return merge_trees(parent_tree, tree)


def merge_trees(base: dict, over: dict) -> dict:
    """Return `base` with `over` laid on it; a node whose `kind` changes is replaced whole.

    Where one side names no kind it means the other's, whichever was written first.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            is_other_kind = "kind" in old and "kind" in value and old["kind"] != value["kind"]
            merged[key] = value if is_other_kind else merge_trees(old, value)
        else:
            merged[key] = value
    return merged


def parse_overrides(overrides: list[str]) -> dict:
    """Turn `a.b=c` strings into a mapping; values are YAML scalars or flow lists.

    Raises:
        ConfigError: an override has no `=` or an empty key.
    """
    tree: dict = {}
    for text in overrides:
        key, found, value = text.partition("=")
        key = key.removeprefix("--")
        if not found or not all(key.split(".")):
            raise ConfigError(f"override {text!r}: expected key.path=value")
        node: dict = {}
        leaf = node
        *parents, last = key.split(".")
        for parent in parents:
            leaf = leaf.setdefault(parent, {})
        leaf[last] = parse_yaml(value, where=f"override {key}") if value else None
        tree = merge_trees(tree, node)
    return tree


def split_fresh(overrides: list[str] | tuple[str, ...]) -> tuple[list[str], bool]:
    """Take `fresh=true` out of overrides: it is no part of the experiment.

    Raises:
        ConfigError: it is neither true nor false.
    """
    others = [text for text in overrides if not text.startswith("fresh=")]
    given = [text.removeprefix("fresh=") for text in overrides if text not in others]
    if wrong := [value for value in given if value not in ("true", "false")]:
        raise ConfigError(f"fresh: should be true or false, got {wrong[-1]!r}")
    return others, "true" in given[-1:]


def load_run(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read, override and validate a run's config.

    Raises:
        ConfigError: one line per mistake, each with the dotted path and what is allowed.
    """
    tree = merge_trees(read_tree(path), parse_overrides(list(overrides)))
    return validate(tree, RunConfig, where=str(path))


def validate[T: BaseModel](tree: dict, node_class: type[T], *, where: str) -> T:
    """Validate plain values strictly against a node class.

    Raises:
        ConfigError: one line per mistake.
    """
    try:
        return node_class.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        lines = [
            f"{where}: {_explain(dict(mistake), node_class, tree)}" for mistake in error.errors()
        ]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def dump_yaml(run: BaseModel) -> str:
    """Return the resolved config as YAML that loads to the same tree."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def schema() -> dict:
    """Return the JSON schema of RunConfig, for editors."""
    return RunConfig.model_json_schema()


def _explain(mistake: dict, node_class: type[BaseModel], tree: dict) -> str:
    location = _key_path(mistake["loc"], tree)
    path = ".".join(str(part) for part in location)
    if mistake["type"] == "extra_forbidden":
        return f"{path}: unknown key{_suggest(str(location[-1]), path, node_class)}"
    if mistake["type"] == "missing":
        return f"{path}: this key is required"
    got = mistake.get("input")
    shown = "" if isinstance(got, dict | list) else f", got {got!r}"
    message = mistake["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"{path or 'config'}: {message}{shown}"


def _key_path(location: tuple, tree: dict) -> list:
    """Drop the names of union members, which pydantic mixes into its locations."""
    node: Any = tree
    kept: list = []
    tag_seen = False
    for step in location:
        is_tag = isinstance(node, dict) and node.get("kind") == step and not tag_seen
        if is_tag and step is not location[-1]:
            tag_seen = True
            continue
        is_index = isinstance(node, list) and isinstance(step, int) and step < len(node)
        is_key = isinstance(node, dict) and step in node
        if not (is_index or is_key or step is location[-1]):
            continue
        kept.append(step)
        tag_seen = False
        node = node[step] if is_index or is_key else None
    return kept


def known_paths(node_class: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every dotted path that the schema knows, union members included."""
    definitions = node_class.model_json_schema().get("$defs", {})

    def walk(node: dict, prefix: str) -> list[str]:
        found: list[str] = []
        for name, child in node.get("properties", {}).items():
            path = f"{prefix}{name}"
            found.append(path)
            references = [child, *child.get("anyOf", []), *child.get("oneOf", [])]
            for reference in references:
                if "$ref" in reference:
                    target = definitions[reference["$ref"].rsplit("/", 1)[-1]]
                    found.extend(walk(target, f"{path}."))
        return found

    return list(dict.fromkeys(walk(node_class.model_json_schema(), prefix)))


def _suggest(key: str, path: str, node_class: type[BaseModel]) -> str:
    paths = known_paths(node_class)
    if key in ALIASES and ALIASES[key] in paths:
        return f"; did you mean {ALIASES[key]}?"
    parent = path.rpartition(".")[0]
    siblings = [p.rpartition(".")[2] for p in paths if p.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {parent + '.' if parent else ''}{near[0]}?"
    near = difflib.get_close_matches(key, [p.rpartition(".")[2] for p in paths], n=1, cutoff=0.7)
    if near:
        full = next(p for p in paths if p.rpartition(".")[2] == near[0])
        return f"; did you mean {full}?"
    return f"; known here: {', '.join(sorted(set(siblings)))}" if siblings else ""


def _nearby_files(path: Path) -> str:
    folder = path.parent  # and nothing below it, which may be all of a disk
    names = [str(p) for p in folder.glob("*.yaml")]
    names += [str(p) for p in Path("configs").rglob("*.yaml")]
    near = difflib.get_close_matches(str(path), names, n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""
