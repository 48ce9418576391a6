"""The pages are true: commands parse, configs load, links resolve, and every config key is told.

Also holds the control questions that the pages and the demo point to.
"""

import ast
import importlib
import json
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import Discriminator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from data_pipelines import jsonl
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from launch import start
from launch import target as target_lib
from mistral_jax import cli
from mistral_jax.config import corpus as corpus_config
from mistral_jax.config import describe
from mistral_jax.config import load
from mistral_jax.config import model as model_config
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.config import presets
from mistral_jax.config import run as run_config
from mistral_jax.config.base import Node
from mistral_jax.config.corpus import CorpusConfig
from mistral_jax.config.run import RunConfig
from tests import shipped

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
CONFIGURATION = ROOT / "docs" / "configuration.md"
QUESTIONS = ROOT / "configs" / "demo" / "general_questions.jsonl"
BASE_CONFIG = ROOT / "configs" / "demo" / "finetune.yaml"
CORPUS_CONFIG = ROOT / "configs" / "data" / "demo_eight_experts.yaml"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE_PATH = re.compile(r"`((?:configs|launch|docs|tests|benchmarks|mistral_jax)/[\w./-]+)`")
ROW = re.compile(r"^\| `([^`]+)` \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)
SETTING = re.compile(r"[A-Z_]+=\S*")
OWN_VERBS = ("test", "peers")  # of ./run; the program does not know them


def blocks(*languages: str) -> list[pytest.param]:
    """Return every fenced block of a language as a parameter, named by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f"{page.name}:{line}"))
    return found


def program_calls(block: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of ./run or mistral-jax in a block of shell."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and SETTING.fullmatch(words[0]):
            words = words[1:]
        if words and words[0] in ("./run", "mistral-jax"):
            yield words[1:]


def check_call(arguments: list[str]) -> None:
    """Parse a call as the program would, and load the config and the target that it names."""
    if arguments[0] in OWN_VERBS:
        return
    options = cli._parse(arguments)
    machine: list[str] = []
    if arguments[0] in ("launch", "preflight"):  # its overrides are of the target too
        options.overrides, machine = start.split_target(options.overrides)
    if arguments[0] == "prepare" and options.inputs[0].endswith(".yaml"):
        corpus_config.load_corpus(options.inputs[0], options.inputs[1:])
    if hasattr(options, "config"):
        cli._load_run(options)
    elif hasattr(options, "overrides"):
        others = [text for text in options.overrides if not text.startswith("fresh=")]
        load.load_run(BASE_CONFIG, others)
    if hasattr(options, "target"):
        target_lib.load_target(options.target, machine)


@pytest.mark.parametrize("block", blocks("sh", "bash", "console"))
def test_commands_parse_and_name_configs_and_targets_that_load(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    for arguments in program_calls(block):
        check_call(arguments)


@pytest.mark.parametrize(
    "line",
    [
        "./run trian configs/demo/finetune.yaml",
        "./run train configs/demo/no_such.yaml",
        "./run train configs/demo/finetune.yaml data.trian=x",
        "./run plan configs/demo/finetune.yaml --target g5_3xlarge",
        "./run demo optimizer.max_stepz=3",
    ],
)
def test_a_wrong_command_is_found(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    calls = list(program_calls(f"MISTRAL_JAX_LOCKS=cuda13 {line}\n"))
    assert len(calls) == 1
    with pytest.raises((SystemExit, load.ConfigError)):
        check_call(calls[0])
    capsys.readouterr()


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_blocks_are_valid_over_the_demo_config(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    tree = load.parse_yaml(block, where="block")
    if tree.keys() & CorpusConfig.model_fields.keys() - RunConfig.model_fields.keys():
        parent = load.read_tree(CORPUS_CONFIG)
        load.validate(load.merge_trees(parent, tree), CorpusConfig, where="block")
        return
    parent = load.read_tree(BASE_CONFIG)
    if "base" in tree:
        parent = load.read_tree(ROOT / "configs" / "demo" / tree.pop("base"))
    load.validate(load.merge_trees(parent, tree), RunConfig, where="block")


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_compile_and_use_names_that_exist(block):
    modules = {}
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name] = importlib.import_module(alias.name)
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert module is None or hasattr(module, node.attr), f"{module} has no {node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    prose = FENCE.sub("", text)
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        goal = (page.parent / path) if path else page
        assert goal.exists(), f"{page.name}: {link} leads nowhere"
        assert not anchor or anchor in anchors(goal), f"{page.name}: no heading for {link}"
    for path in CODE_PATH.findall(prose):
        assert (ROOT / path).exists(), f"{page.name}: {path} is not there"


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def parts_of(annotation: object) -> list[object]:
    """Return the members of a union, or the type itself; Annotated is looked through."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return parts_of(typing.get_args(annotation)[0])
    if origin is typing.Union or type(annotation).__name__ == "UnionType":
        return [part for each in typing.get_args(annotation) for part in parts_of(each)]
    return [annotation]


def nodes_in(annotation: object) -> tuple[list[type[Node]], list[type[Node]]]:
    """Return the node classes that a key takes, and those that it takes a list of."""
    alone, listed = [], []
    for part in parts_of(annotation):
        if isinstance(part, type) and issubclass(part, Node):
            alone.append(part)
        elif typing.get_origin(part) is tuple:
            inner = parts_of(typing.get_args(part)[0])
            listed += [each for each in inner if isinstance(each, type) and issubclass(each, Node)]
    return alone, listed


def key_defaults() -> dict[str, str]:
    """Return every dotted key of the schema with its default as the page has to show it."""
    found: dict[str, list[tuple[str, str]]] = {}

    def add(path: str, kind: str, default: str) -> None:
        found.setdefault(path, []).append((kind, default))

    def walk(node: type[Node], prefix: str, kind: str, *, is_member: bool = False) -> None:
        for name, field in node.model_fields.items():
            path = f"{prefix}{name}"
            default = field.get_default(call_default_factory=True)
            alone, listed = nodes_in(field.annotation)
            if name == "kind" and is_member:
                continue  # the union that holds this node tells its kinds
            if not alone:
                add(path, kind, shown(default))
            elif default is None:
                add(path, kind, "`null`")
            for each in listed:
                walk(each, f"{path}[].", "")
            if len(alone) > 1:
                add(f"{path}.kind", kind, shown(default_kind(field)))
            for each in alone:
                is_member = len(alone) > 1
                own = each.model_fields["kind"].default if is_member else kind
                walk(each, f"{path}.", own, is_member=is_member)

    walk(RunConfig, "", "")
    return {path: join_members(members) for path, members in found.items()}


def default_kind(field: FieldInfo) -> object:
    """Return the kind that a union of nodes takes where none is given."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Node):
        return default.kind
    chosen = [each.discriminator for each in field.metadata if isinstance(each, Discriminator)]
    return chosen[0]({}) if chosen else PydanticUndefined


def shown(default: object) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, tuple):
        default = list(default)
    return f"`{json.dumps(default, default=str)}`".replace('"', "")


def join_members(members: list[tuple[str, str]]) -> str:
    """Return one default, or those of each kind where the kinds differ."""
    members = list(dict.fromkeys(members))  # a union inside a union comes once for each outer kind
    defaults = list(dict.fromkeys(default for _, default in members))
    if len(defaults) == 1:
        return defaults[0]
    return ", ".join(f"{default} ({kind})" for kind, default in members)


def test_every_config_key_stands_in_the_table_with_its_default():
    expected = key_defaults()
    rows = {
        key: default
        for key, _, default, _ in ROW.findall(CONFIGURATION.read_text(encoding="utf-8"))
    }
    told = {key: default for key, default in rows.items() if key in expected}
    assert told == expected
    assert set(rows) == set(expected), "the table tells of keys that do not exist"


def test_the_walk_over_the_schema_misses_no_key_that_the_loader_knows():
    walked = key_defaults()
    for path in load.known_paths(RunConfig):
        assert any(key == path or key.startswith(f"{path}.") for key in walked), path


def test_every_key_has_a_meaning_in_the_table():
    for key, takes, _, meaning in ROW.findall(CONFIGURATION.read_text(encoding="utf-8")):
        assert takes.strip() and meaning.strip(), key


@pytest.mark.parametrize(
    ("key", "node", "field"),
    [
        ("precision.frozen", run_config.Precision, "frozen"),
        ("precision.compute", run_config.Precision, "compute"),
        ("optimizer.moments", optimizer_config.AdamW, "moments"),
        ("adapter.scaling", model_config.LoraAdapter, "scaling"),
    ],
)
def test_every_value_that_a_key_takes_stands_in_the_table(
    key: str, node: type[Node], field: str
) -> None:
    rows = {row[0]: row[1] for row in ROW.findall(CONFIGURATION.read_text(encoding="utf-8"))}
    annotation = node.model_fields[field].annotation
    values = [value for part in parts_of(annotation) for value in typing.get_args(part)]
    assert values and re.findall(r"`(\w+)`", rows[key]) == values


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_preset_is_named_in_the_table(name):
    assert f"`{name}`" in CONFIGURATION.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_has_its_line_on_the_parity_page(name: str) -> None:
    lines = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if f"| `{name}` |" in line]
    assert presets.RELEASES[name].title in row
    assert row.count("|") == 7


def test_control_questions_are_60_different_sound_chats():
    with QUESTIONS.open("rb") as stream:
        documents = list(jsonl.read_jsonl(QUESTIONS.name, stream, Limits()))
    assert [each for each in documents if not isinstance(each, Document)] == []
    chats = [each.messages for each in documents if isinstance(each, Document)]
    assert len(chats) == 60
    for messages in chats:
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(messages) // 2)
    contents = [message["content"] for messages in chats for message in messages]
    assert len(set(contents)) == len(contents)
    for messages in chats:
        for message in messages[1::2]:
            assert 40 <= len(message["content"].split()) <= 90, message["content"]


def test_shipped_configs_are_yaml_that_the_table_covers():
    known = key_defaults()
    for path in shipped.RUN_CONFIGS:
        run = load.load_run(path)
        for key in leaf_keys(yaml.safe_load(load.dump_yaml(run))):
            assert key in known, f"{path}: {key}"


def test_shipped_corpora_load():
    for path in shipped.CORPUS_CONFIGS:
        assert corpus_config.load_corpus(path).sources


def test_the_page_of_corpus_keys_is_what_the_classes_say():
    page = (ROOT / "docs" / "corpus_keys.md").read_text(encoding="utf-8")
    assert page == describe.page(), (
        "run python -m mistral_jax.config.describe > docs/corpus_keys.md"
    )


def leaf_keys(tree: object, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a resolved config, list items as `[]`; a sole kind is left out."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaf_keys(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        for value in tree:
            yield from leaf_keys(value, f"{prefix}[]")
    else:
        yield prefix
