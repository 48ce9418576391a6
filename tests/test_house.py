"""Holds the plan of the house: who may import whom, and which calls are banned where.

It parses every source file; nothing is imported except in the one test that starts a fresh
interpreter to see that the jax-free rooms really are. A new module of mistral_jax that is not in
LAYERS counts as top layer: it may import everything, and nothing below may import it.
"""

import ast
import dataclasses
import functools
import graphlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("mistral_jax", "launch", "data_pipelines", "benchmarks", "tests")
PACKAGES = ("mistral_jax", "launch", "data_pipelines")

# Lowest first. A room imports its own layer (without a cycle) and the layers before it.
LAYERS = (
    "config protocols storage metrics tokenizers templates sandbox formats report",
    "sharding precision rng distributed array_digest checkpoint",
    "nn",
    "adapters models",
    "experts train evaluate generate",
    "serve export reproduce doctor inspect demo",
    "cli",
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms.split()}
TOP = 5
# What data_pipelines and launch may use.
SHARED = {"config", "protocols", "storage", "tokenizers", "templates", "sandbox", "formats"}
JAX_FREE = SHARED | {"launch", "data_pipelines"}
GRAIN_PART = "data_pipelines/batches.py"
JAX_FAMILY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "grain"}

# Third-party package -> the only places that import it (a path, or a folder with its slash).
ONLY_IN = {
    "huggingface_hub": ("mistral_jax/formats/hub.py",),
    "boto3": ("mistral_jax/storage.py", "mistral_jax/storage/", "launch/ec2.py"),
    "botocore": ("mistral_jax/storage.py", "mistral_jax/storage/", "launch/ec2.py"),
    "gcsfs": ("mistral_jax/storage.py", "mistral_jax/storage/"),
    "orbax": ("mistral_jax/checkpoint.py", "mistral_jax/checkpoint/"),
    "grain": (GRAIN_PART,),
}
# Dotted name -> the only places that may name it.
NAMED_ONLY_IN = {
    "jax.sharding.PartitionSpec": (
        "mistral_jax/sharding.py",
        "mistral_jax/nn/kernels/",
        "mistral_jax/nn/expert_parallel.py",
        "mistral_jax/nn/context_parallel.py",
    ),
    "jax.P": ("mistral_jax/sharding.py", "mistral_jax/nn/kernels/"),
    "jax.random.key": ("mistral_jax/rng.py",),
    "jax.random.PRNGKey": ("mistral_jax/rng.py",),
}
BANNED_IN = {
    "yaml": ("load", "load_all", "full_load", "unsafe_load"),
    "pickle": ("load", "loads", "Unpickler"),
    "cloudpickle": ("load", "loads"),
    "os": ("system", "popen"),
    "builtins": ("eval", "exec"),
    "flax.nnx": ("jit", "grad", "value_and_grad", "scan", "Optimizer"),
}
BANNED = {f"{module}.{name}" for module, names in BANNED_IN.items() for name in names}
BANNED_NAMES = {"utils", "misc", "common", "helpers"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module or name, dotted, with its line; runtime is false under TYPE_CHECKING."""

    name: str
    line: int
    runtime: bool


@dataclasses.dataclass(frozen=True)
class Source:
    """A parsed file: its path from the root, its module name, what it imports."""

    path: str
    module: str
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def room(self) -> str:
        """Return the room the file stands in: launch, data_pipelines, or one of mistral_jax."""
        return room_of(self.module)


def room_of(module: str) -> str:
    """Return the room of a dotted module of ours; mistral_jax/__init__ is the Python API."""
    parts = module.split(".")
    if parts[0] != "mistral_jax":
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


def walk_imports(node: ast.AST, module: str, runtime: bool = True) -> Iterator[Import]:
    """Yield every import below node, relative ones made absolute."""
    for child in ast.iter_child_nodes(node):
        is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, runtime) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parents = module.split(".")[: -child.level]
                base = ".".join([*parents, base] if base else parents)
            yield from (Import(f"{base}.{a.name}", child.lineno, runtime) for a in child.names)
        else:
            yield from walk_imports(child, module, runtime and not is_typing)


@functools.cache
def read_sources(root: pathlib.Path) -> list[Source]:
    """Parse every Python file of the project below root."""
    sources = []
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            path = file.relative_to(root).as_posix()
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            tree = ast.parse(file.read_text(encoding="utf-8"), filename=path)
            # A package's own relative imports start one level deeper than its dotted name.
            anchor = f"{module}.__init__" if file.name == "__init__.py" else module
            sources.append(Source(path, module, tree, tuple(walk_imports(tree, anchor))))
    return sources


def may_import(importer: str, imported: str) -> bool:
    """Tell whether one room may import another, cycles aside."""
    if importer == imported:
        return True
    if importer in ("launch", "data_pipelines"):
        return imported in SHARED
    rank = RANK.get(importer, TOP)
    if imported in ("launch", "data_pipelines"):
        return rank >= TOP
    return RANK.get(imported, TOP) <= rank and imported != "cli"


def is_jax_free(source: Source) -> bool:
    """Tell whether the file must work where jax is not imported."""
    is_ours = source.path.startswith(PACKAGES) and source.path != GRAIN_PART
    return is_ours and source.room in JAX_FREE


def check_imports(source: Source) -> Iterator[str]:
    """Yield what the file imports and must not."""
    for item in source.imports:
        package = item.name.split(".")[0]
        where = f"{source.path}:{item.line}"
        if source.path.startswith(PACKAGES) and package in PACKAGES:
            room = room_of(item.name)
            bare = item.name == "mistral_jax" or (package == "mistral_jax" and room not in RANK)
            if not may_import(source.room, "__init__" if bare and room[0] == "_" else room):
                yield f"{where}: {source.room} must not import {item.name}"
            if source.room == "nn" and item.name.startswith("mistral_jax.config.run"):
                yield f"{where}: nn sees its own node of the config, not {item.name}"
        is_tests = source.path.startswith("tests/")
        if not is_tests and package in ONLY_IN and not source.path.startswith(ONLY_IN[package]):
            yield f"{where}: {package} may be imported only in {', '.join(ONLY_IN[package])}"
        elif item.runtime and package in JAX_FAMILY and is_jax_free(source):
            yield f"{where}: {source.room} must work without {package}"


def full_names(source: Source) -> Iterator[tuple[str, int]]:
    """Yield the dotted name, resolved through the file's imports, of each name and attribute."""
    known = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:  # `import a.b` binds a, `import a.b as c` binds c to a.b
                head = alias.name.split(".")[0]
                known[alias.asname or head] = alias.name if alias.asname else head
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            yield from ((f"{node.module}.{a.name}", node.lineno) for a in node.names)
    for node in ast.walk(source.tree):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id in known:
            yield ".".join([known[inner.id], *reversed(parts)]), node.lineno


def check_names(source: Source) -> Iterator[str]:
    """Yield banned calls, and names used outside their place (tests may use those)."""
    for name, line in sorted(set(full_names(source))):
        if name in BANNED:
            yield f"{source.path}:{line}: {name} is banned"
        places = NAMED_ONLY_IN.get(name)
        if places and not source.path.startswith((*places, "tests/")):
            yield f"{source.path}:{line}: {name} may be used only in {', '.join(places)}"
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        where = f"{source.path}:{node.lineno}"
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            yield f"{where}: built-in {node.func.id} is banned"
        if isinstance(node.func, ast.Attribute) and node.func.attr == "extractall":
            yield f"{where}: extractall is banned"
        for keyword in node.keywords:
            is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if keyword.arg in ("shell", "allow_pickle") and is_true:
                yield f"{where}: {keyword.arg}=True is banned"


def check_file(source: Source) -> Iterator[str]:
    """Yield a missing opening docstring and names that say nothing."""
    if source.tree.body and not ast.get_docstring(source.tree):
        yield f"{source.path}:1: a file opens with a docstring that says what it does"
    for part in source.path.removesuffix(".py").split("/"):
        stem = part.removeprefix("test_")
        if stem in BANNED_NAMES or stem.endswith(("_v2", "_deprecated", "_utils", "_helpers")):
            yield f"{source.path}:1: the name {part} says nothing; name what the file does"


def check_cycles(sources: list[Source]) -> Iterator[str]:
    """Yield an import cycle between rooms, and one between modules."""
    ours = [source for source in sources if source.path.startswith(PACKAGES)]
    modules = {source.module for source in ours}
    by_module: dict[str, set[str]] = {}
    by_room: dict[str, set[str]] = {}
    for source in ours:
        for item in source.imports:
            name = item.name if item.name in modules else item.name.rpartition(".")[0]
            if item.runtime and name in modules and name != source.module:
                by_module.setdefault(source.module, set()).add(name)
                if room_of(name) != source.room:
                    by_room.setdefault(source.room, set()).add(room_of(name))
    for what, graph in (("rooms", by_room), ("modules", by_module)):
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            yield f"import cycle of {what}: {' <- '.join(error.args[1])}"


def violations(root: pathlib.Path) -> list[str]:
    """Return every broken rule of the tree at root, one sentence each."""
    sources = read_sources(root)
    found = list(check_cycles(sources))
    for source in sources:
        for check in (check_imports, check_names, check_file):
            found.extend(check(source))
    return found


def test_the_tree_keeps_the_plan():
    assert not (found := violations(ROOT)), "\n".join(found)


PLANTED = [
    ("mistral_jax/nn/a.py", "from mistral_jax.train import loop", "nn must not import"),
    ("mistral_jax/nn/a.py", "from mistral_jax.config import run", "own node"),
    ("mistral_jax/train/a.py", "import data_pipelines.pack", "train must not import"),
    ("mistral_jax/train/a.py", "def f():\n    from mistral_jax import cli", "train must not"),
    ("mistral_jax/train/a.py", "from mistral_jax import new_room", "train must not import"),
    ("mistral_jax/train/a.py", "import mistral_jax", "train must not import"),
    ("mistral_jax/train/a.py", "from ..export import write", "train must not import"),
    ("mistral_jax/demo.py", "from mistral_jax.cli import main", "demo must not import"),
    ("data_pipelines/a.py", "from mistral_jax import metrics", "data_pipelines must not"),
    ("data_pipelines/a.py", "import launch.plan", "data_pipelines must not import"),
    ("launch/a.py", "import jax.numpy as jnp", "launch must work without jax"),
    ("mistral_jax/config/a.py", "from flax import nnx", "config must work without flax"),
    ("mistral_jax/formats/a.py", "def f():\n    import jax", "formats must work without jax"),
    ("data_pipelines/pack.py", "import grain", "grain may be imported only in"),
    ("mistral_jax/train/a.py", "import orbax.checkpoint as ocp", "orbax may be imported only in"),
    ("launch/gpu_host.py", "import boto3", "boto3 may be imported only in"),
    ("mistral_jax/nn/a.py", "from jax.sharding import PartitionSpec as P", "PartitionSpec may"),
    ("mistral_jax/nn/a.py", "import jax\nx = jax.sharding.PartitionSpec()", "PartitionSpec may"),
    ("mistral_jax/nn/a.py", "import jax\nk = jax.random.key(0)", "jax.random.key may"),
    ("mistral_jax/nn/a.py", "from jax import random as r\nk = r.key(0)", "jax.random.key may"),
    ("mistral_jax/nn/a.py", "from flax import nnx\nf = nnx.jit(len)", "flax.nnx.jit is banned"),
    ("benchmarks/a.py", "import yaml\nyaml.load('x')", "yaml.load is banned"),
    ("benchmarks/a.py", "from pickle import loads", "pickle.loads is banned"),
    ("tests/test_a.py", "import subprocess as s\ns.run('ls', shell=True)", "shell=True"),
    ("launch/a.py", "def f(z):\n    z.extractall()", "extractall is banned"),
    ("launch/a.py", "eval('1')", "built-in eval is banned"),
    ("launch/utils.py", "", "name utils says nothing"),
    ("mistral_jax/helpers/a.py", "", "name helpers says nothing"),
]


@pytest.mark.parametrize(("path", "code", "expected"), PLANTED)
def test_a_planted_violation_is_caught(tmp_path, path, code, expected):
    plant(tmp_path, path, code)
    found = violations(tmp_path)
    assert len(found) == 1 and expected in found[0], found


def test_a_file_without_docstring_and_cycles_are_caught(tmp_path):
    plant(tmp_path, "mistral_jax/models/a.py", "from mistral_jax.adapters import b")
    plant(tmp_path, "mistral_jax/adapters/b.py", "from mistral_jax.models.a import f")
    plant(tmp_path, "launch/c.py", "", docstring="x = 1")
    found = violations(tmp_path)
    assert len(found) == 3
    assert "cycle of rooms" in found[0] and "cycle of modules" in found[1], found
    assert "launch/c.py:1: a file opens with a docstring" in found[2], found


def test_what_is_allowed_passes(tmp_path):
    plant(tmp_path, "mistral_jax/nn/a.py", "from mistral_jax.config import model\nmodel.eval()")
    plant(tmp_path, "mistral_jax/nn/kernels/a.py", "from jax.sharding import PartitionSpec")
    plant(tmp_path, "mistral_jax/rng.py", "import jax\nk = jax.random.key(0)")
    plant(tmp_path, "mistral_jax/storage.py", "def f():\n    import boto3")
    plant(tmp_path, "mistral_jax/checkpoint.py", "import orbax.checkpoint")
    plant(tmp_path, "mistral_jax/cli.py", "def f():\n    from data_pipelines import prepare")
    plant(tmp_path, "mistral_jax/train/a.py", "from mistral_jax.generate import engine")
    plant(tmp_path, GRAIN_PART, "import grain")
    plant(tmp_path, "data_pipelines/a.py", "from mistral_jax import storage")
    plant(tmp_path, "launch/ec2.py", "import boto3\nfrom mistral_jax.config import run")
    plant(tmp_path, "tests/test_a.py", "import jax\nk = jax.random.key(0)")
    plant(tmp_path, "mistral_jax/__init__.py", "def f():\n    from mistral_jax.train import loop")
    assert violations(tmp_path) == []


def plant(root: pathlib.Path, path: str, code: str, docstring: str = '"""What it does."""') -> None:
    """Write one source file into a planted tree."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{docstring}\n{code}\n", encoding="utf-8")


def test_jax_free_rooms_import_no_jax():
    """Importing them all in a fresh interpreter leaves jax out, whatever they import in turn."""
    modules = [source.module for source in read_sources(ROOT) if is_jax_free(source)]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'jax' not in sys.modules, f'{name} imports jax'\n"
    )
    command = [sys.executable, "-c", code, *(m for m in modules if not m.endswith("__main__"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
