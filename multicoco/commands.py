"""What each of the `multicoco` command's commands does with its arguments; imports are made when they are needed."""

import argparse
import os
import sys
from pathlib import Path

from multicoco.errors import UserError
from multicoco.interventions import split_specs


def prepare_scenes(args: argparse.Namespace) -> None:
    from multicoco.tasks.scenes import Form, render_scenes

    form = Form(args.text, args.distractors, tuple(args.tiles))
    sizes = (args.train, args.val, args.test)
    _print_counts(args.out, render_scenes(args.out, *sizes, args.seed, args.kinds, args.hops, form, args.apart_from))


def prepare_prosqa(args: argparse.Namespace) -> None:
    from multicoco.tasks.prosqa import Kind, write_prosqa

    kind = Kind(args.nodes, args.hops and tuple(args.hops), args.shape, args.same_depth, args.names)
    sizes = (args.n, args.val, args.test)
    _print_counts(args.out, write_prosqa(args.out, *sizes, args.seed, kind, args.apart_from))


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
    if not TINY[args.family].sees_images and (shown := [example.id for example in examples if example.images]):
        raise UserError(f"{data}: record {shown[0]!r:.60} has an image, which a text model does not see")
    texts = []
    for e in examples:
        asked = [f"The choices are {', '.join(e.choices)}."] if e.choices else [e.answer or ""]
        texts.append("\n".join([e.conversation, *asked, *e.steps]))
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
    from multicoco.study.checks import check_runs
    from multicoco.study.plan import format_plan
    from multicoco.study.results import check_folder, write_results
    from multicoco.study.runner import choose, read_launcher, run_missing
    from multicoco.study.spec import load_study

    study = load_study(args.study)
    jobs = choose(study, args.only)
    if args.list:
        print("\n".join(dict.fromkeys(job.label for job in jobs)))
        return
    check_folder(study)
    launcher = read_launcher(args.launcher)
    check_runs(study, jobs)
    if args.plan:
        print(format_plan(study, jobs, launcher))
        return
    problems = run_missing(study, jobs, launcher, say=lambda text: print(text, flush=True))
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
