"""train/compile.py, train/hlo_traffic.py and the verb: bytes, loops, collectives, refusals.

TPU modules need libtpu, which the default suite does not install: those tests are `slow` and skip
without it. The CPU's compiler answers the same questions here; collectives: tests/sharded.
"""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import target as target_lib
from mistral_jax import artifact
from mistral_jax import cli
from mistral_jax import compile_report
from mistral_jax import compile_run
from mistral_jax import sharding
from mistral_jax.config import load
from mistral_jax.models import definition as definition_lib
from mistral_jax.report import compiled as pictures
from mistral_jax.train import compile as compile_lib
from mistral_jax.train import hlo
from mistral_jax.train import hlo_traffic
from mistral_jax.train import optimizers
from mistral_jax.train import step as step_lib

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "tiny" / "dense.yaml"
SMALL = [
    "model.width=32", "model.head_width=8", "model.ffn.width=64", "model.num_layers=2",
    "data.sequence_length=32", "data.global_batch_sequences=4",
]  # fmt: skip
HAS_LIBTPU = compile_lib.has_libtpu()
MESH = {"data": 1, "fsdp": 4, "expert": 2, "tensor": 1, "context": 1}
MACHINE = {
    "name": "one", "platform": "cpu", "accelerator_type": "cpu", "num_chips": 1,
    "chips_per_host": 1, "hbm_gb_per_s": 20, "peak_tflops": {"bfloat16": 0.3, "float32": 0.15},
    "assumed_utilization": 0.4, "host_memory_gib": 8, "host_cores": 2,
    "micro_batch_sequences": 2,
}  # fmt: skip
# As libtpu writes it: a loop that counts by two, a gather spread over three fusions.
TPU_TEXT = """HloModule jit_step, is_scheduled=true

%start.1 (p.1: f32[8,128]) -> f32[32,128] {
  %p.1 = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %all-gather.1 = f32[32,128]{1,0:T(8,128)} all-gather(%p.1), channel_id=7, replica_groups=mesh['data'=1,'fsdp'=4,'expert'=2,'tensor'=1,'context'=1] {'fsdp'}, dimensions={0}
}

%done.1 (p.2: f32[8,128]) -> f32[32,128] {
  %p.2 = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %all-gather.2 = f32[32,128]{1,0:T(8,128)} all-gather(%p.2), channel_id=7, replica_groups=mesh['data'=1,'fsdp'=4,'expert'=2,'tensor'=1,'context'=1] {'fsdp'}, dimensions={0}
}

%all-reduce-scatter.1 (p.3: f32[32,128]) -> f32[8,128] {
  %p.3 = f32[32,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[32,128]{1,0:T(8,128)} all-reduce(%p.3), channel_id=9, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice.1 = f32[8,128]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={8,128}
}

%body.1 (s.1: (f32[8,128], u32[])) -> (f32[8,128], u32[]) {
  %s.1 = (f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%s.1), index=0
  %n = u32[]{:T(128)} get-tuple-element(%s.1), index=1
  %permute-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{2,3},{4,5},{6,7}}, metadata={op_name="jit(step)/while/body/rotate"}
  %moved = f32[8,128]{1,0:T(8,128)S(1)} collective-permute-done(%permute-start)
  %next = u32[]{:T(128)} add(%n, %two)
  ROOT %out = (f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) tuple(%moved, %next)
}

%cond.1 (s.2: (f32[8,128], u32[])) -> pred[] {
  %s.2 = (f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) parameter(0)
  %limit = u32[]{:T(128)} constant(7)
  %m = u32[]{:T(128)} get-tuple-element(%s.2), index=1
  ROOT %less = pred[]{:T(512)} compare(%m, %limit), direction=LT
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %one = u32[]{:T(128)} constant(1)
  %g1 = f32[32,128]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%start.1
  %g2 = f32[32,128]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%done.1
  %r = f32[8,128]{1,0:T(8,128)} fusion(%g2), kind=kCustom, calls=%all-reduce-scatter.1
  %begin = (f32[8,128]{1,0:T(8,128)}, u32[]{:T(128)}) tuple(%r, %one)
  %loop = (f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) while(%begin), condition=%cond.1, body=%body.1
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=0
}
"""  # noqa: E501
SHARD = 8 * 128 * 4


@pytest.fixture(scope="module")
def machine():
    return target_lib.Target.model_validate(MACHINE | {"topology": (1,)})


@pytest.fixture(scope="module")
def report(machine):
    return compile_run.compile_run(load.load_run(CONFIG, SMALL), machine, say=lambda line: None)


def traced_equations(*changes):
    run = load.load_run(CONFIG, [*SMALL, *changes])
    mesh = sharding.single_device_mesh()
    definition = definition_lib.define(artifact.resolve_decoder(run.model))
    step = step_lib.make_train_step(
        definition,
        run.stage,
        optimizers.make_optimizer(run.optimizer),
        optimizers.learning_rate(run.optimizer),
    )
    state = artifact.abstract_state(definition, run, mesh)
    batch = compile_lib.abstract_batch(2, 2, 32, mesh)
    with jax.set_mesh(mesh):
        return compile_lib.count_equations(step.trace(state, {}, batch).jaxpr.jaxpr)


def test_loops_multiply_and_steps_above_one_are_read():
    read = hlo_traffic.read(TPU_TEXT, MESH)
    permutes = [each for each in read.collectives if each.kind == "collective-permute"]
    # 1, 3, 5 are below 7: three turns.
    assert read.loops == (3,)
    assert [(each.times, each.buffer_bytes, each.sent_bytes) for each in permutes] == [
        (3, SHARD, SHARD)
    ]
    assert permutes[0].axes == ("expert",)
    assert permutes[0].source == "jit(step)/while/body/rotate"


def test_a_collective_split_over_fusions_counts_once():
    read = hlo_traffic.read(TPU_TEXT, MESH)
    gathers = [each for each in read.collectives if each.kind == "all-gather"]
    assert len(gathers) == 1
    assert (gathers[0].group, gathers[0].axes) == (4, ("fsdp",))
    assert (gathers[0].buffer_bytes, gathers[0].sent_bytes) == (4 * SHARD, 3 * SHARD)


def test_a_sliced_reduction_is_a_reduce_scatter():
    read = hlo_traffic.read(TPU_TEXT, MESH)
    scatters = [each for each in read.collectives if each.kind == "reduce-scatter"]
    assert [(each.group, each.axes, each.sent_bytes) for each in scatters] == [
        (4, ("fsdp",), 3 * SHARD)
    ]


def test_a_loop_that_cannot_be_read_counts_once_and_is_named():
    text = TPU_TEXT.replace("direction=LT", "direction=NE")
    read = hlo_traffic.read(text, MESH)
    assert (read.loops, read.unknown_loops) == ((), ("loop",))
    assert [each.times for each in read.collectives] == [1, 1, 1]


@pytest.mark.parametrize(
    "groups, expected",
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", (4, ("fsdp",))),
        ("replica_groups=[4,2]<=[8]", (2, ("expert",))),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (4, ("fsdp",))),
        ("replica_groups=[1,8]<=[8]", (8, ("fsdp", "expert"))),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", (8, ("fsdp", "expert"))),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)4}", (4, ("fsdp",))),
        ("replica_groups={}", (8, ("fsdp", "expert"))),
    ],
)
def test_groups_of_every_spelling_name_their_mesh_axes(groups, expected):
    text = TPU_TEXT.replace("replica_groups=[2,4]<=[4,2]T(1,0)", groups)
    scatter = next(
        each for each in hlo_traffic.read(text, MESH).collectives if each.kind == "reduce-scatter"
    )
    assert (scatter.group, scatter.axes) == expected


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing\n")


def test_trip_counts_and_traffic_of_a_real_module():
    def run(x, y):
        def outer(x, _):
            return jax.lax.scan(lambda x, _: (jnp.sin(x) + y, None), x, length=5)[0], None

        return jax.lax.scan(outer, x, length=3)[0]

    x = jnp.ones((256, 256))
    text = jax.jit(run).lower(x, x).compile().as_text()
    read = hlo_traffic.read(text)
    assert sorted(read.loops) == [3, 5]
    # Fifteen turns of two reads and a write at least; copies between loops may add to it.
    assert 15 * 3 * x.nbytes <= read.hbm_bytes <= 15 * 4 * x.nbytes + 8 * x.nbytes


def test_traffic_of_a_slice_is_the_slice():
    def take(stack):
        def add(total, layer):
            return total + layer, None

        return jax.lax.scan(add, jnp.zeros((64, 64)), stack)[0]

    stack = jnp.ones((100, 64, 64))
    read = hlo_traffic.read(jax.jit(take).lower(stack).compile().as_text())
    assert read.loops == (100,)
    # The whole stack in every turn would be a hundred times this.
    assert stack.nbytes <= read.hbm_bytes <= 6 * stack.nbytes


NESTED_TEXT = """HloModule nested

%inner (q.1: f32[58,8,128], q.2: s32[]) -> f32[8,128] {
  %q.1 = f32[58,8,128]{2,1,0} parameter(0)
  %q.2 = s32[] parameter(1)
  %part = f32[1,8,128]{2,1,0} dynamic-slice(%q.1, %q.2, %q.2, %q.2), dynamic_slice_sizes={1,8,128}
  ROOT %flat = f32[8,128]{1,0} bitcast(%part)
}

%outer (p.1: f32[58,8,128], p.2: s32[]) -> f32[8,128] {
  %p.1 = f32[58,8,128]{2,1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  %taken = f32[8,128]{1,0} fusion(%p.1, %p.2), kind=kLoop, calls=%inner
  ROOT %sine = f32[8,128]{1,0} sine(%taken)
}

%little (l: f32[58,8,128]) -> f32[8,128] {
  %l = f32[58,8,128]{2,1,0} parameter(0)
  ROOT %few = f32[8,128]{1,0} slice(%l), slice={[0:1], [0:8], [0:128]}
}

%much (m: f32[58,8,128]) -> f32[8,128] {
  %m = f32[58,8,128]{2,1,0} parameter(0)
  %c = f32[58,8,128]{2,1,0} copy(%m)
  ROOT %few.1 = f32[8,128]{1,0} slice(%c), slice={[0:1], [0:8], [0:128]}
}

%more (t: (f32[8,128], s32[])) -> (f32[8,128], s32[]) {
  %t = (f32[8,128]{1,0}, s32[]) parameter(0)
  %v = f32[8,128]{1,0} get-tuple-element(%t), index=0
  %i = s32[] get-tuple-element(%t), index=1
  %w = f32[8,128]{1,0} negate(%v)
  ROOT %u = (f32[8,128]{1,0}, s32[]) tuple(%w, %i)
}

%until (t.1: (f32[8,128], s32[])) -> pred[] {
  %t.1 = (f32[8,128]{1,0}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=1
  ROOT %is = pred[] compare(%i.1, %i.1), direction=LT
}

ENTRY %main (a: f32[58,8,128], b: s32[]) -> f32[8,128] {
  %a = f32[58,8,128]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %f = f32[8,128]{1,0} fusion(%a, %b), kind=kLoop, calls=%outer
  %g = f32[8,128]{1,0} conditional(%b, %a, %a), branch_computations={%little, %much}
  %s = (f32[8,128]{1,0}, s32[]) tuple(%f, %b)
  %n = (f32[8,128]{1,0}, s32[]) while(%s), condition=%until, body=%more, metadata={op_name="of_data/while"}
  ROOT %h = f32[8,128]{1,0} get-tuple-element(%n), index=0
}
"""  # noqa: E501


def test_slices_in_inner_fusions_branches_and_loops_of_the_data_count_by_what_they_move():
    stack = 58 * SHARD
    read = hlo_traffic.read(NESTED_TEXT)
    # The slice, its index and its result; the costlier branch alone; the loop once, and named.
    expected = (2 * SHARD + 4) + (2 * stack + 2 * SHARD) + 2 * SHARD
    assert (read.hbm_bytes, read.unknown_loops) == (expected, ("n",))
    read = hlo_traffic.read(NESTED_TEXT, expected_trips={"of_data": 2.5})
    assert (read.hbm_bytes, read.unknown_loops) == (expected + 3 * SHARD, ())


def test_work_beside_the_rest_counts_at_its_start_and_end():
    beside = """  %one = u32[]{:T(128)} constant(1)
  %far = ((f32[8,128]{1,0}), f32[4,128]{1,0}, u32[]{:S(8)}) call-start(%a), to_apply=%gather
  %still = ((f32[8,128]{1,0}), f32[4,128]{1,0}, u32[]{:S(8)}) call-update(%far)
  %near = f32[4,128]{1,0} call-done(%still)
"""
    plain = hlo_traffic.read(TPU_TEXT, MESH).hbm_bytes
    text = TPU_TEXT.replace("  %one = u32[]{:T(128)} constant(1)\n", beside)
    assert hlo_traffic.read(text, MESH).hbm_bytes == plain + SHARD + SHARD // 2


def test_sizes_of_types():
    assert hlo.size_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, s4[3]{0}, f32[]{:S(2)}, token[])") == 18
    assert hlo.size_bytes("f32[8]{0:T(8)S(1)}", only_hbm=True) == 0
    assert hlo.elements("((f32[1], f32[2]), f32[3]{0})") == ["(f32[1], f32[2])", " f32[3]{0}"]


def test_arguments_are_state_and_batch_to_the_byte(report):
    memory = report.memory
    parts = memory.parameters + memory.optimizer_state + memory.frozen_parameters + memory.batch
    key_bytes = jax.random.key_data(jax.random.key(0)).nbytes
    assert memory.arguments == parts + 4 + key_bytes  # the step's number, the root key
    assert memory.parameters == 4 * report.parameters
    assert memory.batch == 4 * 32 * 4 * 5
    assert memory.total == memory.arguments + memory.outputs - memory.aliased + (
        memory.temporaries + memory.code
    )
    # The state is donated.
    assert memory.aliased >= memory.parameters + memory.optimizer_state


def test_equations_do_not_grow_with_depth():
    assert traced_equations("model.num_layers=2") == traced_equations("model.num_layers=6") > 100


def test_times_follow_from_the_flops(report, machine):
    peak = machine.chip_flops_per_s(load.load_run(CONFIG, SMALL).precision.compute)
    assert report.roofline.compute_s == pytest.approx(report.model_flops / peak)
    forty = report.assumed[1]
    assert forty.utilization == 0.4
    assert forty.seconds_per_step == pytest.approx(report.roofline.compute_s / 0.4)
    assert forty.tokens_per_s == pytest.approx(4 * 32 / forty.seconds_per_step)
    assert forty.days_per_trillion_tokens == pytest.approx(1e12 / forty.tokens_per_s / 86400)
    assert forty.usd_per_trillion_tokens is None
    assert report.roofline.ici_s is None
    assert not report.unknown_loops


def test_a_price_gives_a_cost(report):
    plan_free = report.assumed[0]
    assert plan_free.usd_per_trillion_tokens is None
    text = pictures.markdown(report.model_dump(mode="json"))
    assert "no price known" in text


def test_what_does_not_fit_names_the_largest_part(report):
    compile_report.check_fit(report)
    small = report.memory.model_copy(update={"available": report.memory.total - 1})
    with pytest.raises(
        compile_report.DoesNotFit, match=r"largest part is temporaries.*micro_batch"
    ):
        compile_report.check_fit(report.model_copy(update={"memory": small}))
    state = small.model_copy(update={"optimizer_state": 1 << 40})
    with pytest.raises(
        compile_report.DoesNotFit, match=r"largest part is optimizer state.*optimizer"
    ):
        compile_report.check_fit(report.model_copy(update={"memory": state}))
    assert compile_report.DoesNotFit.exit_code == cli.EXIT_FAILED


def test_the_compilers_refusal_is_read():
    error = compile_lib._refused(
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (33.26G) exceeds available HBM (15.75G). HLO module: x.\nSee"
    )
    assert error.wanted_bytes == int(33.26 * 2**30)
    assert "\n" not in str(error)


def test_the_report_is_json_markdown_and_a_picture(report, tmp_path):
    values = report.model_dump(mode="json")
    values["memory"]["available"] = 2 * report.memory.total
    pictures.write_all(values, tmp_path / "new")
    base = tmp_path / "new" / "tiny_dense_on_one"
    assert json.loads(base.with_suffix(".json").read_text()) == values
    text = base.with_suffix(".md").read_text()
    assert f"{report.parameters:,}" in text
    assert "uncalibrated" in text
    root = ElementTree.fromstring(base.with_suffix(".svg").read_text())
    titles = [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("temporaries") for title in titles)
    assert any(title.startswith("compute") for title in titles)


def test_the_verb_prints_the_report_and_writes_json(tmp_path, capsys, monkeypatch, report):
    monkeypatch.setattr(compile_run, "compile_run", lambda *args, **kwargs: report)
    file = tmp_path / "report.json"
    arguments = ["compile", str(CONFIG), "--target", "local_cpu", "--json", str(file), *SMALL]
    assert cli.main(arguments) == cli.EXIT_DONE
    assert "Memory of one device" in capsys.readouterr().out
    assert json.loads(file.read_text())["num_equations"] == report.num_equations


def tpu_target(tmp_path, **changes):
    fields = {
        "name": "slice", "platform": "tpu", "accelerator_type": "v5litepod-4", "topology": [2, 2],
        "num_chips": 4, "num_hosts": 1, "chips_per_host": 4, "hbm_gib": 15.75,
        "hbm_gb_per_s": 819, "ici_gb_per_s": 50, "peak_tflops": {"bfloat16": 197, "float32": 33},
        "assumed_utilization": 0.4, "mesh": {"fsdp": 4}, "micro_batch_sequences": 1,
    } | changes  # fmt: skip
    path = tmp_path / "slice.yaml"
    path.write_text(json.dumps(fields))
    return str(path)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"topology": [4, 1]}, r"v5e has no topology 4x1; known: 1x1, 2x2, 2x4"),
        ({"accelerator_type": "v9-4"}, "unknown TPU 'v9-4'.*v5litepod"),
        ({"platform": "gpu"}, "is a gpu; compile works for TPU"),
    ],
)
def test_targets_that_cannot_be_compiled_for_are_refused(tmp_path, capsys, changes, said):
    target = tpu_target(tmp_path, **changes)
    assert cli.main(["compile", str(CONFIG), "--target", target]) == cli.EXIT_INPUT
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert re.search(said, error)


def test_without_libtpu_the_message_is_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compile_lib, "has_libtpu", lambda: False)
    assert cli.main(["compile", str(CONFIG), "--target", tpu_target(tmp_path)]) == cli.EXIT_INPUT
    assert "-m pip install 'libtpu==" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed")
def test_libtpu_knows_every_topology_of_the_table():
    for generation, shapes in compile_run.TOPOLOGIES.items():
        for shape in shapes:
            devices = compile_lib.tpu_devices(f"{generation}:{shape}")
            assert len(devices) == np.prod([int(size) for size in shape.split("x")])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed")
def test_a_step_compiles_for_a_tpu_slice(tmp_path):
    target = target_lib.load_target(tpu_target(tmp_path))
    run = load.load_run(CONFIG, SMALL)
    report = compile_run.compile_run(run, target, say=lambda line: None)
    assert report.num_devices == 4
    assert not report.unknown_loops
    assert report.roofline.ici_s > 0
    sent = {each.kind for each in report.collectives if "fsdp" in each.axes}
    assert sent & {"all-gather", "collective-permute", "all-reduce"}
    memory = report.memory
    # fsdp 4 splits the large parameters; norms stay whole.
    assert memory.parameters < 4 * report.parameters / 2
    assert memory.total < memory.available
