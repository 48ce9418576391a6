"""The command line: verbs, `key=value` overrides last. Thin; every verb imports what it needs.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 3 refused by a gate (another
experiment's directory, too little disk or memory), 130 interrupted: a run that was asked to stop
has saved. `--debug` shows the traceback.
"""

import argparse
import json
import sys
from collections.abc import Sequence

EXIT_DONE, EXIT_FAILED, EXIT_INPUT = 0, 1, 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    options = _parse(arguments)
    try:
        return options.verb(options)
    except ValueError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_INPUT)
    except OSError as error:
        if options.debug:
            raise
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; overrides may stand after options too, where argparse alone refuses them."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    wrong = [text for text in rest if "=" not in text or "overrides" not in options]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    if "machine" in options:  # of the target: launcher.host=...
        from launch import start

        options.overrides, options.machine = start.split_target(options.overrides)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mistral-jax", description="Train, adapt, export and run the Mistral family in JAX."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    demo = _verb(verbs, "demo", _demo, "the main job, end to end, on this machine")
    _overrides(demo)
    prepare = _verb(verbs, "prepare", _prepare, "raw documents to shards (resumable)")
    prepare.add_argument(
        "inputs",
        nargs="+",
        metavar="CONFIG [KEY=VALUE ...] | SOURCE [SOURCE ...] OUTPUT",
        help="a corpus's config, or documents (folders, files, archives; here, s3:// or gs://) "
        "and the folder or prefix that gets their shards",
    )
    documents = prepare.add_argument_group("for documents without a config")
    documents.add_argument("--jsonl", metavar="URI", help="write the documents as JSONL here, too")
    documents.add_argument("--tokenizer", help="checkpoint, file, or a known name")
    documents.add_argument("--eval-fraction", type=float, default=0.05, help="share held out")
    documents.add_argument(
        "--max-examples-per-document", type=int, help="rows of JSONL that may name one document"
    )
    documents.add_argument("--name", help="what the source is called")
    train = _verb(verbs, "train", _train, "train as a config says; goes on by itself")
    _config(train)
    _target(train)
    _overrides(train)
    plan = _verb(verbs, "plan", _plan, "mesh, memory, time and cost; starts nothing")
    _config(plan)
    _target(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument("--check", action="store_true", help="compare with the golden plan; 1: drift")
    plan.add_argument("--update", action="store_true", help="write the golden plan")
    _overrides(plan)
    compiler = _verb(
        verbs, "compile", _compile, "compile the step for a machine that is not here; exact memory"
    )
    _config(compiler)
    _target(compiler)
    compiler.add_argument("--json", metavar="FILE", help="write the report as JSON")
    compiler.add_argument("--out", metavar="DIR", help="write JSON, Markdown and a picture here")
    compiler.add_argument("--hlo", metavar="FILE", help="write the compiled module as text")
    _overrides(compiler)
    launcher = _verb(verbs, "launch", _launch, "start a run on its target, or attach to it")
    _config(launcher)
    _target(launcher)
    launcher.set_defaults(machine=[])
    launcher.add_argument("--dry-run", action="store_true", help="show every command and file")
    launcher.add_argument("--create", action="store_true", help="start the machine too (EC2)")
    launcher.add_argument("--stop", action="store_true", help="end the run, and its EC2 machine")
    _overrides(launcher)
    preflight = _verb(verbs, "preflight", _preflight, "all that can be checked before a launch")
    _config(preflight)
    _target(preflight)
    preflight.add_argument("--json", action="store_true", help="print JSON")
    preflight.add_argument("--remote", action="store_true", help="ask the hosts, too")
    preflight.add_argument("--on-host", action="store_true", help="this machine is to train")
    _overrides(preflight)
    generate = _verb(verbs, "generate", _generate, "complete prompts")
    generate.add_argument("model", help="checkpoint or run directory")
    generate.add_argument("prompts", nargs="+", help="one completion for each")
    _sampling(generate)
    chat = _verb(verbs, "chat", _chat, "talk to a model in the terminal")
    chat.add_argument("model", help="checkpoint or run directory")
    _sampling(chat)
    importer = _verb(verbs, "import", _import, "a checkpoint into our own layout, once")
    importer.add_argument("source", help="folder or file of any supported format")
    importer.add_argument("destination", help="folder to write")
    importer.add_argument("--dtype", default="checkpoint", help="number format to store")
    export = _verb(verbs, "export", _export, "write a model, reload it, print the difference")
    export.add_argument("source", help="checkpoint or run directory")
    export.add_argument("destination", help="folder (or .gguf file) to write")
    export.add_argument("--format", required=True, choices=("hf", "consolidated", "gguf", "peft"))
    export.add_argument(
        "--dtype",
        default="bfloat16",
        help="float32, float16, bfloat16; for gguf also q8_0, or q4_k_m by llama.cpp's quantiser",
    )
    merge = _verb(verbs, "merge", _merge, "fold an adapter into its base, layer by layer")
    merge.add_argument("adapter", help="PEFT folder or run directory; a path or a URI")
    merge.add_argument("destination", help="folder to write")
    merge.add_argument("--base", help="the base's weights; else what the adapter names")
    merge.add_argument("--dtype", default="checkpoint", help="number format; else the base's own")
    verify = _verb(verbs, "verify", _verify, "largest logit difference of two models")
    verify.add_argument("first")
    verify.add_argument("second")
    verify.add_argument("--tolerance", type=float, default=1e-4)
    inspect = _verb(verbs, "inspect", _inspect, "what is this checkpoint, run, or data?")
    inspect.add_argument("path")
    inspect.add_argument("--rows", type=int, default=2, help="documents to show of data")
    inspect.add_argument("--row", help="id or digest of a row of a prepared corpus to trace")
    inspect.add_argument("--tokenizer", help="spells the tokens of data: checkpoint, file or name")
    doctor = _verb(verbs, "doctor", _doctor, "check this machine")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    _verb(verbs, "schema", _schema, "JSON schema of the config, for editors")
    return parser


def _verb(verbs, name: str, function, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text)
    # Suppressed, so that the verb's own default does not undo a --debug before it.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.set_defaults(verb=function)
    return parser


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file under configs/")


def _target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="local_cpu", help="a machine in launch/targets")


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as seed=1")


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raw", action="store_true", help="no chat template")
    parser.add_argument(
        "--adapter", metavar="PATH_OR_URI", help="PEFT folder or run to put on the model"
    )


def _load_run(options: argparse.Namespace):
    from mistral_jax.config import load

    overrides, is_fresh = load.split_fresh(options.overrides)
    return load.load_run(options.config, overrides), is_fresh


def _demo(options: argparse.Namespace) -> int:
    from mistral_jax import demo

    return demo.run(options.overrides)


def _prepare(options: argparse.Namespace) -> int:
    first, *others = options.inputs
    if first.endswith((".yaml", ".yml")):
        from mistral_jax import corpus_run

        print(json.dumps(corpus_run.run(first, others), indent=2))
        return EXIT_DONE
    if not others or options.tokenizer is None:
        raise ValueError(
            "prepare: expected a corpus's config (CONFIG.yaml), or documents, an output and "
            "--tokenizer; see mistral-jax prepare --help"
        )
    from data_pipelines import deliver
    from mistral_jax import tokenizers

    summary = deliver.deliver(
        options.inputs[:-1],
        options.inputs[-1],
        tokenizer=tokenizers.load_tokenizer(options.tokenizer),
        name=options.name,
        eval_fraction=options.eval_fraction,
        max_examples_per_document=options.max_examples_per_document,
        jsonl=options.jsonl,
    )
    print(json.dumps(summary, indent=2))
    return EXIT_DONE


def _train(options: argparse.Namespace) -> int:
    run, is_fresh = _load_run(options)
    from mistral_jax import distributed
    from mistral_jax import job

    result = job.train(run, target=options.target, fresh=is_fresh)
    if result.reason.startswith("SIG"):  # whoever started the run must not take it for done
        return EXIT_INTERRUPTED
    if not distributed.is_main():
        return EXIT_DONE
    if result.reason == "finished_before":
        print(f"this run is finished at step {result.step}: {result.directory}")
        print("start it again beside the old one with fresh=true")
    if result.report is not None:
        print(f"report: {result.report}")
    return EXIT_DONE


def _plan(options: argparse.Namespace) -> int:
    from launch import plan
    from launch import target

    run, _ = _load_run(options)
    if options.check or options.update:
        return _golden_plan(run, options)
    made = plan.resolve(run, target.load_target(options.target))
    if options.json:
        print(made.model_dump_json(indent=2))
        return EXIT_DONE
    from rich import console

    from launch import plan_table

    console.Console().print(plan_table.plan_table(made))
    return EXIT_DONE


def _golden_plan(run, options: argparse.Namespace) -> int:
    from launch import golden

    if options.update:
        print(golden.update(run, options.target))
        return EXIT_DONE
    drift = golden.check(run, options.target)
    for line in drift:
        print(line)
    if not drift:
        print(f"{run.name} on {options.target} is as its golden plan")
    return EXIT_FAILED if drift else EXIT_DONE


def _compile(options: argparse.Namespace) -> int:
    run, _ = _load_run(options)
    from pathlib import Path

    from launch import target
    from mistral_jax import compile_report
    from mistral_jax import compile_run
    from mistral_jax.report import compiled

    report = compile_run.compile_run(
        run,
        target.load_target(options.target),
        say=lambda line: print(line, file=sys.stderr),
        keep_text=None if options.hlo is None else Path(options.hlo).write_text,
    )
    print(compiled.markdown(report.model_dump(mode="json")), end="")
    if options.json is not None:
        compiled.write_json(report.model_dump(mode="json"), options.json)
    if options.out is not None:
        compiled.write_all(report.model_dump(mode="json"), options.out)
    compile_report.check_fit(report)
    return EXIT_DONE


def _launch(options: argparse.Namespace) -> int:
    from pathlib import Path

    from launch import start
    from launch import target

    run, _ = _load_run(options)
    return start.launch(
        run,
        Path(options.config),
        options.overrides,
        target.load_target(options.target, options.machine),
        is_dry_run=options.dry_run,
        create=options.create,
        stop=options.stop,
    )


def _preflight(options: argparse.Namespace) -> int:
    from launch import preflight

    context = preflight.context_of(
        options.config,
        options.target,
        options.overrides,
        on_host=options.on_host,
        remote=options.remote,
    )
    return preflight.run(context, is_json=options.json)


def _generate(options: argparse.Namespace) -> int:
    from mistral_jax import api

    adapters = None if options.adapter is None else {"adapter": options.adapter}
    model = api.load(options.model, adapters=adapters)
    completions = api.generate(
        model,
        options.prompts,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        is_raw=options.raw,
    )
    for completion in completions:
        print(completion.text)
    return EXIT_DONE


def _chat(options: argparse.Namespace) -> int:
    from mistral_jax import chat

    return chat.run(options)


def _import(options: argparse.Namespace) -> int:
    from mistral_jax import convert

    _show(convert.import_checkpoint(options.source, options.destination, dtype=options.dtype))
    return EXIT_DONE


def _export(options: argparse.Namespace) -> int:
    from mistral_jax import convert

    _show(
        convert.export_model(
            options.source, options.destination, format=options.format, dtype=options.dtype
        )
    )
    return EXIT_DONE


def _merge(options: argparse.Namespace) -> int:
    from mistral_jax import merge

    _show(merge.merge(options.adapter, options.destination, base=options.base, dtype=options.dtype))
    return EXIT_DONE


def _show(exported) -> None:
    print(exported.summary)


def _verify(options: argparse.Namespace) -> int:
    from mistral_jax import convert

    difference = convert.compare(options.first, options.second)
    print(f"largest logit difference {difference:.3g} (tolerance {options.tolerance:g})")
    return EXIT_DONE if difference <= options.tolerance else EXIT_FAILED


def _inspect(options: argparse.Namespace) -> int:
    from mistral_jax import inspect

    inspect.show(options.path, num_rows=options.rows, row=options.row, tokenizer=options.tokenizer)
    return EXIT_DONE


def _doctor(options: argparse.Namespace) -> int:
    from mistral_jax import doctor

    return doctor.run(is_json=options.json)


def _schema(options: argparse.Namespace) -> int:
    from mistral_jax.config import load

    print(json.dumps(load.schema(), indent=2))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
