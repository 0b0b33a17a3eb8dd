"""The `multicoco` command: what goes before and after a run of train.py."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from multicoco.config.section import expand
from multicoco.errors import UserError
from multicoco.interventions import split_specs


def prepare_scenes(args: argparse.Namespace) -> None:
    from multicoco.tasks.scenes import Form, render_scenes

    form = Form(args.text, args.distractors)
    sizes = (args.train, args.val, args.test)
    _print_counts(args.out, render_scenes(args.out, *sizes, args.seed, args.kinds, args.hops, form, args.apart_from))


def prepare_prosqa(args: argparse.Namespace) -> None:
    from multicoco.tasks.prosqa import write_prosqa

    sizes = (args.n, args.val, args.test)
    drawn = (args.seed, args.nodes, args.hops, args.shape, args.apart_from)
    _print_counts(args.out, write_prosqa(args.out, *sizes, *drawn))


def _print_counts(out: Path, counts: dict[str, int]) -> None:
    print(f"{out}: " + ", ".join(f"{n} {split}" for split, n in counts.items()))


def prepare_gsm8k(args: argparse.Namespace) -> None:
    from multicoco.tasks.gsm8k import convert_gsm8k

    print(f"{args.out}: {convert_gsm8k(args.file, args.out)} records")


def prepare_model(args: argparse.Namespace) -> None:
    from multicoco.config import load_config
    from multicoco.data.sources import load_examples
    from multicoco.data.sources.of_run import load_of_run
    from multicoco.models.tiny import TINY
    from multicoco.registry import load

    if args.family not in TINY:
        raise UserError(f"--family {args.family}: there are tiny models of {', '.join(TINY)}")
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out} is not empty: give another --out or remove it")
    if args.config is None:
        data, examples = args.data, load_examples(args.data, args.data.parent, verify_images=False)
    else:
        config = load_config(args.config)
        if (data := config.train_path or config.val_path) is None:
            raise UserError(f"{args.config} names neither train_path nor val_path, which the tokenizer is trained on")
        examples = load_of_run(config, data, None, verify_images=False)
    sees_images = load("families", args.family).sees_images
    if not sees_images and (shown := [example.id for example in examples if example.images]):
        raise UserError(f"{data}: record {shown[0]!r:.60} has an image, which a text model does not see")
    texts = []
    for e in examples:
        asked = [f"The choices are {', '.join(e.choices)}."] if e.choices else [e.answer or ""]
        texts.append("\n".join([e.question, *asked, *e.steps]))
    print(f"{TINY[args.family](texts, args.out, args.seed)}: a tiny model of the family {args.family}, random weights")


def summarize(args: argparse.Namespace) -> None:
    from multicoco.evaluation.report import format_table, write_summary

    evaluations = {mode: run for mode in ("vanilla", "cot", "coconut") if (run := getattr(args, mode)) is not None}
    if not evaluations:
        raise UserError("name at least one run: --vanilla, --cot or --coconut")
    print(format_table(write_summary(evaluations, args.trained, args.out)))


def compare_runs(args: argparse.Namespace) -> None:
    from multicoco.study.compare import compare, format_comparison, write_comparison

    comparison = compare(args.evaluations, args.reference, args.shared)
    print(format_comparison(comparison))
    if args.out is not None:
        write_comparison(comparison, args.out)


def run_study(args: argparse.Namespace) -> None:
    from multicoco.report.at_end import report_at_end
    from multicoco.study.results import check_folder, write_results
    from multicoco.study.runner import choose, format_plan, read_launcher, run_missing
    from multicoco.study.spec import load_study

    study = load_study(args.study)
    if args.list:
        print("\n".join(dict.fromkeys(job.label for job in study.jobs)))
        return
    check_folder(study)
    jobs = choose(study, args.only)
    if args.plan:
        print(format_plan(study, jobs))
        return
    problems = run_missing(jobs, read_launcher(args.launcher), say=lambda text: print(text, flush=True))
    if not args.only:  # those of a scheduler's array must not write it at once
        print(write_results(study).text)
        report_at_end(study.folder)
    if problems:
        raise UserError(f"{len(problems)} runs of the study are missing:\n  " + "\n  ".join(problems))


def ask(args: argparse.Namespace) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from multicoco.ask.asker import load
    from multicoco.ask.session import How, Question, questions_of, read_choices, run

    choices = read_choices(args.choices or "")
    asker = load(args.checkpoint)
    print(asker.checkpoint, file=sys.stderr)
    modes = asker.modes if args.mode == "all" else [args.mode or asker.modes[-1]]
    how = How(modes, args.latents, split_specs(filter(None, args.intervene.split(","))), args.lens, args.json)
    image = str(args.image) if args.image else None
    lines = questions_of(sys.stdin, image, choices)
    run(asker, lines if args.question is None else [Question(args.question, image, choices)], how)


def export(args: argparse.Namespace) -> None:
    from multicoco.export.folder import export

    print(export(args.checkpoint, args.to, args.push, args.merge))


def serve_app(args: argparse.Namespace) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from multicoco.app.server import serve

    serve(args.checkpoint, args.host, args.port, args.examples)


def report(args: argparse.Namespace) -> None:
    from multicoco.report.page import write_report

    print(write_report(args.paths, args.out))


def list_runs(args: argparse.Namespace) -> None:
    from multicoco.report.listing import find_runs, format_runs, list_run

    if not (runs := find_runs(args.folder)):
        raise UserError(f"there is no run in {args.folder}: name the folder of your runs")
    print(format_runs([list_run(run) for run in runs]))


def watch_run(args: argparse.Namespace) -> None:
    from multicoco.report.watch import watch

    watch(args.run_folder, args.every, args.once)


def doctor(args: argparse.Namespace) -> None:
    if args.exact:
        from multicoco.doctor.exact import check_exactness

        for line in check_exactness(args.config, args.overrides):
            print(line)
        return
    from multicoco.doctor.examine import examine, format_table

    rows = examine(args.config, args.overrides, args.hostfile, args.timeout)
    print(format_table(rows))
    if failed := sum(row.result == "FAIL" for row in rows):
        raise UserError(f"{failed} checks failed, see above")


def show_data(args: argparse.Namespace) -> None:
    from multicoco.config import load_config
    from multicoco.preview import preview

    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in preview(load_config(args.config, args.overrides), args.examples, colours):
        print(line)


def keep_features(args: argparse.Namespace) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the images' readers are forked
    from multicoco.config import load_config
    from multicoco.engine.features_ahead import keep_ahead

    print(keep_ahead(load_config(args.config, args.overrides)))


def make_plan(args: argparse.Namespace) -> None:
    from multicoco.config import load_config
    from multicoco.methods import method_class
    from multicoco.planning.cost import Cluster
    from multicoco.planning.plan import plan
    from multicoco.planning.workload import Lengths

    config = load_config(args.config, args.overrides)
    peak = args.tflops or (989 if config.bf16 or config.fp16 else 67)
    cluster = Cluster(args.nodes, args.gpus, args.gpu_memory, args.intra_node, args.inter_node, peak)
    given = {"prompt": args.prompt_tokens, "answer": args.answer_tokens}
    assumed = {key: value for key, value in given.items() if value is not None}
    if args.step_tokens is not None:
        method = method_class(config.trained_method)(config)
        assumed["steps"] = (args.step_tokens,) * method.schedule.max_latent_stage
    print(plan(config, cluster, args.image_tiles, Lengths(**assumed) if assumed else None, args.write))


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """An argument's type: a number above 0."""

    def read(text: str) -> float:
        value = kind(text)
        if not value > 0 or value == float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
        return value

    read.__name__ = kind.__name__
    return read


def expanded(text: str) -> str:
    """An argument's type: text with `~` and environment variables expanded."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def path(text: str) -> Path:
    """An argument's type: a file or folder, `~` and environment variables expanded."""
    return Path(expanded(text))


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="multicoco", description="Tools around MultiCoCo's train.py.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    making = "make a data set or a model"
    add_prepare(
        commands.add_parser("prepare", help=making, epilog="example: multicoco prepare scenes --out data/scenes")
    )

    summary = commands.add_parser(
        "summarize",
        help="compare evaluations: a table, and JSON",
        epilog="example: multicoco summarize --cot runs/demo/cot_eval --coconut runs/demo/coconut_eval --out all.json",
    )
    for mode in ("vanilla", "cot", "coconut"):
        summary.add_argument(f"--{mode}", type=path, metavar="RUN", help=f"run folder with a {mode} evaluation")
    summary.add_argument("--trained", type=path, nargs="*", default=[], metavar="RUN", help="runs whose time counts")
    summary.add_argument("--out", type=path, required=True, help="JSON file to write")
    summary.set_defaults(run=summarize)

    comparison = commands.add_parser(
        "compare",
        help="compare evaluated runs on the same questions, with statistics",
        epilog="example: multicoco compare runs/demo/coconut_eval runs/demo/cot_eval --reference runs/demo/cot_eval",
    )
    comparison.add_argument(
        "evaluations", nargs="+", type=expanded, metavar="RUN[:MODE]", help="run folder; all its modes, or one of them"
    )
    comparison.add_argument(
        "--reference", type=expanded, metavar="RUN[:MODE]", help="compare each with this one (default: every two)"
    )
    comparison.add_argument(
        "--shared", action="store_true", help="on the questions that all were asked, if some differ"
    )
    comparison.add_argument("--out", type=path, help="JSON file to write, with all flips")
    comparison.set_defaults(run=compare_runs)

    study = commands.add_parser(
        "study",
        help="train and evaluate arms and seeds, compare them, and read the verdict",
        epilog="example: multicoco study args/studies/scenes.yaml --launcher 'deepspeed --num_gpus 8'",
    )
    study.add_argument("study", type=path, metavar="STUDY.yaml")
    study.add_argument("--plan", action="store_true", help="show the runs, their steps and the time, and stop")
    study.add_argument("--list", action="store_true", help="one arm/seed a line, for schedulers, and stop")
    study.add_argument(
        "--only", action="append", default=[], metavar="ARM/SEED", help="run this alone (or all of ARM); repeatable"
    )
    study.add_argument(
        "--launcher", default=shlex.quote(sys.executable), help="what starts train.py, such as 'deepspeed --num_gpus 8'"
    )
    study.set_defaults(run=run_study)

    asking = commands.add_parser(
        "ask",
        help="ask a checkpoint a question",
        epilog="example: multicoco ask runs/demo/coconut --image photo.png --question 'Which tile?' --choices red,blue",
    )
    asking.add_argument("checkpoint", type=expanded, help="run folder (its best checkpoint), checkpoint, or model")
    asking.add_argument("--image", type=path, help="picture that the question is about")
    asking.add_argument("--question", help="default: one a line of standard input, as text or as JSON")
    asking.add_argument("--choices", metavar="A,B,C", help="answers to choose from")
    asking.add_argument("--mode", help="vanilla, cot, coconut, ... or all (default: as it was trained)")
    asking.add_argument("--latents", type=int, metavar="N", help="thoughts (default: as many as at its stage)")
    changed = "also with the thoughts changed: zero, mean, transplant=FILE, ..."
    asking.add_argument("--intervene", default="", metavar="WHAT,...", help=changed)
    asking.add_argument("--lens", action="store_true", help="also show the words that the head reads in each thought")
    asking.add_argument("--json", action="store_true", help="a JSON object a question")
    asking.set_defaults(run=ask)

    exporting = commands.add_parser(
        "export",
        help="write a checkpoint as a folder that plain transformers loads and that thinks without MultiCoCo",
        epilog="example: multicoco export runs/demo/coconut --to exported",
    )
    exporting.add_argument("checkpoint", type=expanded, help="run folder (its best checkpoint), or checkpoint")
    exporting.add_argument("--to", type=path, required=True, metavar="FOLDER", help="folder to make")
    exporting.add_argument("--push", metavar="OWNER/NAME", help="also upload it to the hub, as this model")
    exporting.add_argument(
        "--merge", action="store_true", help="of a run with LoRA: a whole model, and not its adapters"
    )
    exporting.set_defaults(run=export)

    app = commands.add_parser(
        "app",
        help="ask a checkpoint in a browser, see its thoughts and change them",
        epilog="example: multicoco app runs/demo/coconut",
    )
    app.add_argument("checkpoint", type=expanded, help="run folder (its best checkpoint), checkpoint, or model")
    app.add_argument("--host", default="127.0.0.1", help="address to serve (default 127.0.0.1: this machine alone)")
    app.add_argument("--port", type=int, default=7860, help="default 7860")
    app.add_argument("--examples", type=path, metavar="FILE", help="records to choose from (default: the val_path)")
    app.set_defaults(run=serve_app)

    page = commands.add_parser(
        "report",
        help="write a page about runs or studies, to open in a browser",
        epilog="example: multicoco report runs/demo/cot_eval runs/demo/coconut_eval --out report.html",
    )
    page.add_argument(
        "paths", nargs="+", type=path, metavar="RUN_OR_STUDY", help="run folder, folder of runs, or folder of a study"
    )
    page.add_argument("--out", type=path, help="HTML file to write (default: report.html in the folder, if it is one)")
    page.set_defaults(run=report)

    listing = commands.add_parser(
        "runs", help="list runs: their state, accuracy, and how to go on", epilog="example: multicoco runs runs/demo"
    )
    listing.add_argument(
        "folder", type=path, nargs="?", default=Path("runs"), help="searched to its depth (default runs)"
    )
    listing.set_defaults(run=list_runs)

    watching = commands.add_parser(
        "watch", help="watch a run as it goes", epilog="example: multicoco watch runs/my_coconut"
    )
    watching.add_argument("run_folder", type=path, metavar="RUN")
    watching.add_argument("--every", type=positive(float), default=2, metavar="SECONDS", help="default 2")
    watching.add_argument("--once", action="store_true", help="show it once, and stop")
    watching.set_defaults(run=watch_run)

    checkup = commands.add_parser(
        "doctor",
        help="check the hosts, the data and the network before a run",
        epilog="example: multicoco doctor --hostfile hostfile args/aokvqa_coconut.yaml",
    )
    checkup.add_argument("config", type=path, help="run config of the run to be")
    checkup.add_argument("--hostfile", type=path, help="DeepSpeed hostfile (default: this machine alone)")
    checkup.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides")
    checkup.add_argument("--timeout", type=int, default=120, help="seconds for the all_reduce (default 120)")
    checkup.add_argument(
        "--exact", action="store_true", help="instead: compare the model's loss after thoughts with plain recomputing"
    )
    checkup.set_defaults(run=doctor)

    data = commands.add_parser(
        "data",
        help="what a run will be trained and asked on: counts, lengths, and each stage's row",
        epilog="example: multicoco data args/aokvqa_coconut.yaml",
    )
    data.add_argument("config", type=path, help="run config of the run to be; its model's weights are not needed")
    data.add_argument(
        "--examples", type=positive(int), default=1000, metavar="N", help="whose tokens are counted (default 1000)"
    )
    data.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides")
    data.set_defaults(run=show_data)

    features = commands.add_parser(
        "features",
        help="compute the features of a run's images ahead of it (features: cache)",
        epilog="example: multicoco features args/aokvqa_qwen2_5_vl_cot.yaml --set features=cache",
    )
    features.add_argument("config", type=path, help="run config of the run to be")
    features.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides")
    features.set_defaults(run=keep_features)

    planner = commands.add_parser(
        "plan",
        help="choose a ds_config for a cluster, without a GPU and without weights",
        epilog="example: multicoco plan args/aokvqa_coconut.yaml --gpus 8 --nodes 2 --write ds_config.json",
    )
    planner.add_argument("config", type=path, help="run config of the run to be; config.json of its model suffices")
    planner.add_argument("--gpus", type=positive(int), required=True, help="GPUs of a node")
    planner.add_argument("--nodes", type=positive(int), default=1)
    planner.add_argument("--gpu-memory", type=positive(float), default=80, metavar="GIB", help="of a GPU (default 80)")
    planner.add_argument(
        "--intra-node", type=positive(float), default=450, metavar="GB/S", help="GPU to GPU in a node (default 450)"
    )
    planner.add_argument(
        "--inter-node", type=positive(float), default=400, metavar="GB/S", help="node to node (default 400)"
    )
    planner.add_argument(
        "--tflops", type=positive(float), help="peak of a GPU (default: an H100's, 989 in bf16 and fp16, 67 in fp32)"
    )
    planner.add_argument(
        "--image-tiles", type=positive(int), help="of an example (default: the most the config allows)"
    )
    for name, what in (("prompt", "the text of a question"), ("step", "a reasoning step"), ("answer", "an answer")):
        planner.add_argument(
            f"--{name}-tokens", type=positive(int), metavar="N", help=f"of {what} (default: measured on the data)"
        )
    planner.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides")
    planner.add_argument("--write", type=path, metavar="PATH", help="ds_config to write; its explanation goes to .md")
    planner.set_defaults(run=make_plan)
    return root


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """The commands that make data sets and models."""
    prepare = parser.add_subparsers(required=True, metavar="WHAT")

    def data_set(name: str, what: str, sizes: dict[str, int]) -> argparse.ArgumentParser:
        made = prepare.add_parser(name, help=what, epilog=f"example: multicoco prepare {name} --out data/{name}")
        made.add_argument("--out", type=path, required=True, help="folder to make")
        for option, default in sizes.items():
            made.add_argument(f"--{option}", type=int, default=default, help=f"records (default {default})")
        made.add_argument("--seed", type=int, default=0)
        made.add_argument(
            "--apart-from", type=path, nargs="+", default=[], metavar="PATH", help="data sets to share nothing with"
        )
        return made

    scenes = data_set("scenes", "generated scenes in the A-OKVQA format", {"train": 8000, "val": 500, "test": 100})
    scenes.add_argument("--kinds", nargs="+", default=["tile", "shape"], help="kinds of question (default: tile shape)")
    scenes.add_argument("--hops", type=int, default=3, help="reasoning steps of each question, to 8 (default 3)")
    scenes.add_argument("--distractors", type=int, default=0, help="tiles with a dot that means nothing (default 0)")
    scenes.add_argument("--text", action="store_true", help="the same scenes in sentences, without pictures")
    scenes.set_defaults(run=prepare_scenes)

    prosqa = data_set("prosqa", "ProsQA by the paper's generator", {"n": 17886, "val": 300, "test": 500})
    prosqa.add_argument("--nodes", type=int, default=28, help="nodes of a graph, 5 of which end up unused (default 28)")
    prosqa.add_argument("--hops", type=int, nargs="+", help="lengths of the path (default: of the deepest leaf's)")
    prosqa.add_argument("--shape", default="dag", help="of the graphs: dag, tree or dense (default dag)")
    prosqa.set_defaults(run=prepare_prosqa)

    gsm8k = prepare.add_parser(
        "gsm8k",
        help="records of GSM8k-Aug's text files",
        epilog="example: multicoco prepare gsm8k train.txt --out data/gsm8k/gsm_train.json",
    )
    gsm8k.add_argument("file", type=path, help="lines of 'question||step step #### answer'")
    gsm8k.add_argument("--out", type=path, required=True, help="JSON file to write")
    gsm8k.set_defaults(run=prepare_gsm8k)

    model = prepare.add_parser(
        "model",
        help="write a tiny model with random weights and a tokenizer for the data",
        epilog="example: multicoco prepare model --data data/scenes/aokvqa_v1p0_train.json --out models/tiny",
    )
    texts = model.add_mutually_exclusive_group(required=True)
    texts.add_argument("--data", type=path, metavar="FILE", help="records that the tokenizer is trained on")
    texts.add_argument("--config", type=path, metavar="RUN.yaml", help="the same, read as a run config says")
    model.add_argument("--out", type=path, required=True)
    model.add_argument("--seed", type=int, default=0)
    model.add_argument("--family", default="internvl", metavar="NAME", help="docs/models.md (default internvl)")
    model.add_argument("--text", action="store_const", const="text", dest="family", help="the same as --family text")
    model.set_defaults(run=prepare_model)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
