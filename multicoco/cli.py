"""The `multicoco` command: what goes before and after a run of train.py."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from multicoco import commands
from multicoco.config.section import expand
from multicoco.errors import UserError


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


def add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides")


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="multicoco", description="Tools around MultiCoCo's train.py.")
    added = root.add_subparsers(required=True, metavar="COMMAND")
    making = "make a data set or a model"
    add_prepare(added.add_parser("prepare", help=making, epilog="example: multicoco prepare scenes --out data/scenes"))

    summary = added.add_parser(
        "summarize",
        help="compare evaluations: a table, and JSON",
        epilog="example: multicoco summarize --cot runs/demo/cot_eval --coconut runs/demo/coconut_eval --out all.json",
    )
    for mode in ("vanilla", "cot", "coconut"):
        summary.add_argument(f"--{mode}", type=path, metavar="RUN", help=f"run folder with a {mode} evaluation")
    summary.add_argument("--trained", type=path, nargs="*", default=[], metavar="RUN", help="runs whose time counts")
    summary.add_argument("--out", type=path, required=True, help="JSON file to write")
    summary.set_defaults(run=commands.summarize)

    comparison = added.add_parser(
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
    comparison.set_defaults(run=commands.compare_runs)

    study = added.add_parser(
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
    study.set_defaults(run=commands.run_study)

    asking = added.add_parser(
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
    asking.set_defaults(run=commands.ask)

    exporting = added.add_parser(
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
    exporting.set_defaults(run=commands.export)

    app = added.add_parser(
        "app",
        help="ask a checkpoint in a browser, see its thoughts and change them",
        epilog="example: multicoco app runs/demo/coconut",
    )
    app.add_argument("checkpoint", type=expanded, help="run folder (its best checkpoint), checkpoint, or model")
    app.add_argument("--host", default="127.0.0.1", help="address to serve (default 127.0.0.1: this machine alone)")
    app.add_argument("--port", type=int, default=7860, help="default 7860")
    app.add_argument("--examples", type=path, metavar="FILE", help="records to choose from (default: the val_path)")
    app.set_defaults(run=commands.serve_app)

    page = added.add_parser(
        "report",
        help="write a page about runs or studies, to open in a browser",
        epilog="example: multicoco report runs/demo/cot_eval runs/demo/coconut_eval --out report.html",
    )
    page.add_argument(
        "paths", nargs="+", type=path, metavar="RUN_OR_STUDY", help="run folder, folder of runs, or folder of a study"
    )
    page.add_argument("--out", type=path, help="HTML file to write (default: report.html in the folder, if it is one)")
    page.set_defaults(run=commands.report)

    listing = added.add_parser(
        "runs", help="list runs: their state, accuracy, and how to go on", epilog="example: multicoco runs runs/demo"
    )
    listing.add_argument(
        "folder", type=path, nargs="?", default=Path("runs"), help="searched to its depth (default runs)"
    )
    listing.set_defaults(run=commands.list_runs)

    watching = added.add_parser(
        "watch", help="watch a run as it goes", epilog="example: multicoco watch runs/my_coconut"
    )
    watching.add_argument("run_folder", type=path, metavar="RUN")
    watching.add_argument("--every", type=positive(float), default=2, metavar="SECONDS", help="default 2")
    watching.add_argument("--once", action="store_true", help="show it once, and stop")
    watching.set_defaults(run=commands.watch_run)

    checkup = added.add_parser(
        "doctor",
        help="check the hosts, the data and the network before a run",
        epilog="example: multicoco doctor --hostfile hostfile args/aokvqa_coconut.yaml",
    )
    checkup.add_argument("config", type=path, help="run config of the run to be")
    checkup.add_argument("--hostfile", type=path, help="DeepSpeed hostfile (default: this machine alone)")
    add_overrides(checkup)
    checkup.add_argument("--timeout", type=int, default=120, help="seconds for the all_reduce (default 120)")
    checkup.add_argument(
        "--exact", action="store_true", help="instead: compare the model's loss after thoughts with plain recomputing"
    )
    checkup.set_defaults(run=commands.doctor)

    data = added.add_parser(
        "data",
        help="what a run will be trained and asked on: counts, lengths, and each stage's row",
        epilog="example: multicoco data args/aokvqa_coconut.yaml",
    )
    data.add_argument("config", type=path, help="run config of the run to be; its model's weights are not needed")
    data.add_argument(
        "--examples", type=positive(int), default=1000, metavar="N", help="whose tokens are counted (default 1000)"
    )
    add_overrides(data)
    data.set_defaults(run=commands.show_data)

    features = added.add_parser(
        "features",
        help="compute the features of a run's images ahead of it (features: cache)",
        epilog="example: multicoco features args/aokvqa_qwen2_5_vl_cot.yaml --set features=cache",
    )
    features.add_argument("config", type=path, help="run config of the run to be")
    add_overrides(features)
    features.set_defaults(run=commands.keep_features)

    planner = added.add_parser(
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
    planner.add_argument("--image-tiles", type=positive(int), help="of an image (default: the most the config allows)")
    for name, what in (("prompt", "the text of a question"), ("step", "a reasoning step"), ("answer", "an answer")):
        planner.add_argument(
            f"--{name}-tokens", type=positive(int), metavar="N", help=f"of {what} (default: measured on the data)"
        )
    add_overrides(planner)
    planner.add_argument("--write", type=path, metavar="PATH", help="ds_config to write; its explanation goes to .md")
    planner.set_defaults(run=commands.make_plan)
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
    scenes.add_argument("--tiles", type=int, nargs="+", default=[9], help="of scenes in sentences, in turn (default 9)")
    scenes.set_defaults(run=commands.prepare_scenes)

    prosqa = data_set("prosqa", "ProsQA by the paper's generator", {"n": 17886, "val": 300, "test": 500})
    prosqa.add_argument("--nodes", type=int, default=28, help="nodes of a graph, 5 of which end up unused (default 28)")
    prosqa.add_argument("--hops", type=int, nargs="+", help="lengths of the path (default: of the deepest leaf's)")
    prosqa.add_argument("--shape", default="dag", help="of the graphs: dag, tree or dense (default dag)")
    prosqa.add_argument(
        "--same-depth", action="store_true", help="only questions whose two options are as deep (docs/tasks.md)"
    )
    prosqa.add_argument("--names", type=int, help="of concepts, and of persons, to draw from (default: as published)")
    prosqa.set_defaults(run=commands.prepare_prosqa)

    gsm8k = prepare.add_parser(
        "gsm8k",
        help="records of GSM8k-Aug's text files",
        epilog="example: multicoco prepare gsm8k train.txt --out data/gsm8k/gsm_train.json",
    )
    gsm8k.add_argument("file", type=path, help="lines of 'question||step step #### answer'")
    gsm8k.add_argument("--out", type=path, required=True, help="JSON file to write")
    gsm8k.set_defaults(run=commands.prepare_gsm8k)

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
    model.set_defaults(run=commands.prepare_model)


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
