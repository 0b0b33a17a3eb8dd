"""The whole command, in flavours: launchers, modes, ZeRO stages, resuming, mistakes.

What launchers do is tried with one run each of `python`, `torchrun` and `deepspeed`, and a mistake on two ranks; the
other runs are forked (runs.py).
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from homes import make_home
from peft import PeftModel
from PIL import Image
from runs import Ended, RunServer, logged, losses
from tracked import scalars
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from multicoco.engine.deepspeed import free_port
from multicoco.engine.manifest import damage
from multicoco.engine.trainer_state import read_state
from multicoco.evaluation.thoughts import Thoughts, read_thoughts
from multicoco.models.tiny import build_tokenizer

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / "shared" / "data"
BIN = Path(sys.executable).parent
N_TRAIN, N_VAL = 22, 11  # no multiple of any batch size below
Train = Callable[..., Ended]

pytestmark = pytest.mark.distributed

LAUNCHERS = {
    "python": [sys.executable],
    "torchrun": [str(BIN / "torchrun"), "--nnodes", "1", "--nproc_per_node", "2"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A data set, a tiny model, and a run config over them."""
    config = """mode: cot_train
batch_size: 4
generation: {max_new_tokens: 4}
"""
    return make_home(tmp_path_factory.mktemp("train"), N_TRAIN, N_VAL, config)


@pytest.fixture(scope="module")
def train(home, run_server: RunServer) -> Train:
    """Does a forked run of `run.yaml`, which must end well, or not, on all ranks."""

    def run(
        *settings: str, ranks: int = 1, allow_change: tuple[str, ...] = (), patch: str = "", ok: bool = True
    ) -> Ended:
        ended = run_server.run(home / "run.yaml", *settings, ranks=ranks, allow_change=allow_change, patch=patch)
        assert all((code == 0) == ok for code in ended.codes), "\n".join(ended.said)
        return ended

    return run


def launch(home: Path, *settings: str, launcher: str = "python", ok: bool = True) -> subprocess.CompletedProcess:
    """Starts train.py as users do."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    path = f"{BIN}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0", "PATH": path}
    # a port of its own: other jobs on this machine may have the launchers' default
    port = [] if launcher == "python" else ["--master_port", str(free_port())]
    command = [*LAUNCHERS[launcher], *port, str(REPO / "train.py"), str(home / "run.yaml"), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=home)
    assert (done.returncode == 0) == ok, done.stdout[-3000:] + done.stderr[-5000:]
    return done


def samples(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / "samples" / f"{name}.jsonl").read_text().splitlines()]


def assert_same_samples(found: list[dict], expected: list[dict]) -> None:
    """Up to the last digits of log-probabilities, which depend on the size of the batch."""
    for a, b in zip(found, expected, strict=True):
        assert {**a, "choice_logprobs": None, "gold_logprob": None} == b | {
            "choice_logprobs": None,
            "gold_logprob": None,
        }
        assert a["choice_logprobs"] == pytest.approx(b["choice_logprobs"], rel=1e-4)


def assert_same_thoughts(found: Thoughts, expected: Thoughts) -> None:
    """Up to the last digits, which depend on the size of the batch."""
    assert (found.questions, found.words) == (expected.questions, expected.words)
    assert found.embedding.mean == pytest.approx(expected.embedding.mean)
    for name in ("first", "step", "gold_first", "gold_ids", "n", "top_ids", "gold_ranks"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    for name in ("norm", "top_probabilities", "cosines", "effective_rank", "mean_similarity"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-5, err_msg=name)


def summary(run: Path, mode: str) -> dict:
    return json.loads((run / "evaluation" / f"{mode}.json").read_text())


# in place of evaluations: what they would have found, epoch by epoch
ACCURACIES = """
from multicoco.evaluation.evaluator import Evaluator
found = iter({})
Evaluator.run = lambda self, name, stage, step: next(found)
"""
FAILING = """
import os
from multicoco.evaluation.evaluator import Evaluator
run = Evaluator.run
def fail(self, name, *others):
    if name == "{epoch}":
        {dies}
    return run(self, name, *others)
Evaluator.run = fail
"""
DATE = "from multicoco.engine import assembly; assembly.strftime = lambda form: '{}'"
PORT = "import os; os.environ['MASTER_PORT'] = '{}'"
COCONUT = (
    "mode=coconut_train",
    "coconut.enabled=true",
    "coconut.c_thought=2",
    "coconut.max_latent_stage=2",
    "coconut.epochs_per_stage=1",
    "num_epochs=3",
)


@pytest.fixture(scope="module")
def cot_run(home) -> Path:
    """Two epochs of CoT in a single process."""
    launch(home, "name=cot", "num_epochs=2")
    return home / "runs" / "cot"


INTERVENTIONS = "eval_config.interventions=[mean, only(2, noise), mask, extend(5), other_input(blank)]"
THOUGHTS = "eval_config.thoughts=true"
INTERVENED = ["coconut.mean", "coconut.only-2-noise", "coconut.mask", "coconut.extend-5", "coconut.other_input-blank"]


@pytest.fixture(scope="module")
def coconut_run(home, cot_run) -> Path:
    """From it, Coconut over its stages, on two ranks with ZeRO-3, accumulation and checkpointing."""
    weights = f"load_model_path={cot_run}"
    launch(home, *COCONUT, *zero3(), "name=coconut", weights, INTERVENTIONS, THOUGHTS, launcher="deepspeed")
    return home / "runs" / "coconut"


def zero3() -> tuple[str, ...]:
    return (
        f"deepspeed={REPO}/ds_configs/zero3.json",
        "batch_size=2",
        "gradient_accumulation_steps=2",
        "activation_checkpointing=true",
        "lr_schedule=linear",
        "coconut.uniform_prob=0.3",
        "coconut.stage_lr=[1e-3, 5e-4]",
    )


class TestCot:
    def test_every_epoch_is_trained_evaluated_and_saved(self, cot_run):
        steps = -(-N_TRAIN // 4)
        assert len(losses(cot_run)) == 2 * steps
        assert losses(cot_run)[-1] < losses(cot_run)[0]
        assert len(logged(cot_run, "eval/cot/n")) == 2 and set(logged(cot_run, "eval/cot/n")) == {N_VAL}
        assert sorted(p.name for p in (cot_run / "checkpoints").iterdir()) == ["epoch_0001", "epoch_0002", "latest"]
        assert {"config.yaml", "environment.json"} <= {p.name for p in cot_run.iterdir()}

    def test_samples_hold_every_example_once_with_what_was_asked_for(self, home, cot_run):
        records = json.loads((home / "scenes" / "aokvqa_v1p0_val.json").read_text())
        found = samples(cot_run, "epoch_0002_cot")
        assert [s["id"] for s in found] == [r["question_id"] for r in records]
        assert [s["gold"] for s in found] == [r["correct_choice_idx"] for r in records]
        assert all(s["correct"] == (s["extracted"] == s["gold"]) for s in found)
        assert all(1 <= s["new_tokens"] <= 4 and s["latent_passes"] == 0 for s in found)

    def test_weights_load_in_plain_transformers(self, cot_run):
        path = cot_run / "checkpoints" / "epoch_0002" / "model"
        model, report = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert len(AutoTokenizer.from_pretrained(path)) == model.config.text_config.vocab_size

    def test_an_existing_run_is_not_overwritten(self, train, cot_run):
        before = {p: p.stat().st_mtime_ns for p in cot_run.rglob("*")}
        [error] = train("name=cot", "num_epochs=2", "resume=false", ok=False).errors
        assert "already holds checkpoints: set resume: auto" in error
        assert {p: p.stat().st_mtime_ns for p in cot_run.rglob("*")} == before

    def test_a_run_that_is_finished_is_refused_and_left_alone(self, train, cot_run):
        before = {p: p.stat().st_mtime_ns for p in cot_run.rglob("*")}
        [error] = train("name=cot", "num_epochs=2", "batch_size=2", ranks=2, ok=False).errors
        assert "trained for 2 epochs" in error and "Raise num_epochs" in error
        assert {p: p.stat().st_mtime_ns for p in cot_run.rglob("*")} == before

    def test_a_resumed_run_goes_on_like_the_unbroken_one(self, home, train, cot_run):
        tracked = "tracking=[tensorboard]"
        train("name=broken", "num_epochs=1", tracked)
        [refused] = train("name=broken", "num_epochs=2", ok=False).said
        assert "num_epochs: 1 -> 2" in refused and "--allow-change" in refused
        train("name=broken", "num_epochs=2", tracked, allow_change=("num_epochs",))
        broken = home / "runs" / "broken"
        assert losses(broken) == losses(cot_run)
        events = scalars(broken)
        for name in ("train/loss", "eval/cot/accuracy"):
            assert [value for _, value in events[name]] == pytest.approx(logged(broken, name))
        for name in ("epoch_0001", "epoch_0002"):
            weights = [run / "checkpoints" / name / "model" / "model.safetensors" for run in (broken, cot_run)]
            assert weights[0].read_bytes() == weights[1].read_bytes()

    def test_two_ranks_train_like_one(self, home, cot_run):
        launch(home, "name=ranks", "batch_size=2", "num_epochs=1", launcher="torchrun")
        expected = losses(cot_run)[: -(-N_TRAIN // 4)]
        assert losses(home / "runs" / "ranks") == pytest.approx(expected, rel=1e-4)  # fp32 sums reordered


class TestCoconut:
    def test_stages_follow_each_other_and_restart_the_schedule(self, coconut_run):
        steps = -(-N_TRAIN // 8)
        assert logged(coconut_run, "train/stage") == [1] * steps + [2] * steps + [3] * steps
        rates = logged(coconut_run, "train/lr")
        assert rates[steps : 2 * steps] == rates[2 * steps :] == pytest.approx([rate / 2 for rate in rates[:steps]])
        assert rates[0] > rates[steps - 1]
        for key in ("thoughts/norm", "thoughts/effective_rank"):
            assert len(logged(coconut_run, key)) == 3 * steps and min(logged(coconut_run, key)) > 0

    def test_a_stage_goes_on_as_a_new_optimizer_on_its_weights_would(self, home, train, coconut_run):
        """A second run starts at stage 2 from the first one's weights, so its AdamW is new by construction."""
        weights = f"load_model_path={coconut_run}/checkpoints/epoch_0001"
        train(*COCONUT, *zero3(), "name=new", weights, "resume=1", ranks=2)
        steps = -(-N_TRAIN // 8)
        expected = losses(coconut_run)[steps:]
        assert losses(home / "runs" / "new") == pytest.approx(expected, rel=1e-5)  # fp32 sums reordered

    def test_without_reset_the_schedule_spans_the_run(self, home, train):
        settings = ("reset_optimizer=false", "lr_schedule=linear", "coconut.first_stage=2", "freeze.vision_tower=true")
        train("name=spanning", *COCONUT, *settings, "max_train_samples=8", "max_val_samples=2")
        run = home / "runs" / "spanning"
        assert logged(run, "train/stage") == [2, 2, 3, 3, 3, 3]
        rates = logged(run, "train/lr")
        assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)

    def test_evaluation_uses_the_latents_of_the_stage(self, coconut_run):
        assert logged(coconut_run, "eval/coconut/mean_latent_passes") == [2.0, 4.0, 4.0]
        assert logged(coconut_run, "eval/coconut/n") == [N_VAL] * 3

    def test_evaluation_in_all_modes_is_the_same_on_any_number_of_ranks(self, home, train, coconut_run):
        """With the keys of the checkpoint's method, whatever the config has."""
        found = {}
        for ranks, batch in ((1, 11), (2, 2)):
            weights = f"load_model_path={coconut_run}/checkpoints/epoch_0003"
            modes = (
                "eval_config={vanilla: true, cot: true, coconut: true}",
                INTERVENTIONS,
                "coconut.enabled=true",
                THOUGHTS,
                "report=true",
            )
            said = train(
                f"name=eval_{ranks}", "mode=eval_only", *modes, weights, f"eval_batch_size={batch}", ranks=ranks
            ).said
            assert "as the checkpoint was trained:" in said[0] and "coconut.c_thought: 1 -> 2" in said[0]
            run = home / "runs" / f"eval_{ranks}"
            assert [text.count(f"report: {run}/report.html") for text in said] == [1, 0][:ranks]
            page = (run / "report.html").read_text()
            assert "Interventions on the thoughts" in page and "Effective rank, by thought" in page
            found[ranks] = {mode: samples(run, f"final_{mode}") for mode in ("vanilla", "cot", "coconut", *INTERVENED)}
            assert summary(run, "coconut")["mean_latent_passes"] == 4 and summary(run, "cot")["mean_latent_passes"] == 0
            assert summary(run, "coconut")["stage"] == 3 and "epoch_0003" in summary(run, "coconut")["checkpoint"]
        for mode, rows in found[1].items():
            assert len(rows) == N_VAL
            assert_same_samples(found[2][mode], rows)
        # and as the training run saw it, under ZeRO-3
        for mode in ("coconut", *INTERVENED):
            assert_same_samples(samples(coconut_run, f"epoch_0003_{mode}"), found[1][mode])
            alone = read_thoughts(home / "runs" / "eval_1" / "thoughts" / f"final_{mode}.safetensors")
            assert_same_thoughts(
                read_thoughts(home / "runs" / "eval_2" / "thoughts" / f"final_{mode}.safetensors"), alone
            )
            assert_same_thoughts(read_thoughts(coconut_run / "thoughts" / f"epoch_0003_{mode}.safetensors"), alone)
            assert [*alone.questions] == [sample["id"] for sample in found[1][mode]]
        assert summary(coconut_run, "coconut.extend-5")["mean_latent_passes"] == 5

    def test_latent_tokens_can_be_counted_by_hand(self, home, train, coconut_run):
        settings = ("coconut.enabled=true", "eval_config.coconut=true", "eval_config.eval_latent_tokens=1")
        train("name=eval_one", "mode=eval_only", *settings, f"load_model_path={coconut_run}")
        assert summary(home / "runs" / "eval_one", "coconut")["mean_latent_passes"] == 1

    def test_the_best_checkpoint_is_one_of_the_last_stage(self, home, train):
        """The first stages answer better here; their accuracies say nothing of the last one's."""
        records = ("max_train_samples=4", "max_val_samples=2", "num_epochs=4", "max_checkpoints_to_keep=4")
        stages = "coconut.first_stage=1"
        train("name=stages", *COCONUT, *records, stages, patch=ACCURACIES.format([0.9, 0.8, 0.4, 0.3]))
        run = home / "runs" / "stages"
        states = [read_state(run / "checkpoints" / f"epoch_{epoch:04d}") for epoch in range(1, 5)]
        assert [(state.stage, state.accuracy) for state in states] == [(1, 0.9), (2, 0.8), (3, 0.4), (3, 0.3)]
        settings = ("coconut.enabled=true", "eval_config.coconut=true", "max_val_samples=2")
        said = train("name=best", "mode=eval_only", *settings, f"load_model_path={run}").said[0]
        assert "epoch_0003" in said
        found = summary(home / "runs" / "best", "coconut")
        assert found["stage"] == 3 and found["mean_latent_passes"] == 4 and "epoch_0003" in found["checkpoint"]


def test_lora_resumes_exactly_and_saves_a_plain_model(home, train, cot_run):
    """Under ZeRO-3, with dropout, so that the random states count, and a stage transition after the break."""
    records = ("max_train_samples=8", "max_val_samples=4")
    weights = f"load_model_path={cot_run}/checkpoints/epoch_0002"
    settings = (*COCONUT, *zero3(), *records, weights, "lora={rank: 4, dropout: 0.1}", "freeze.vision_tower=true")
    settings = (*settings, "lr={projector: 3e-3, language_model: 1e-3, new_tokens: 2e-3}", "coconut.stage_lr=null")
    train(*settings, "name=lora", "num_epochs=2", ranks=2)
    train(*settings, "name=lora_broken", "num_epochs=1", ranks=2)
    train(*settings, "name=lora_broken", "num_epochs=2", ranks=2, allow_change=("num_epochs",))
    unbroken, broken = (home / "runs" / name for name in ("lora", "lora_broken"))
    assert losses(unbroken) == losses(broken)
    for part, times in (("projector", 3), ("language_model", 1), ("new_tokens", 2)):
        rates = logged(unbroken, f"train/lr/{part}")
        assert rates == logged(broken, f"train/lr/{part}")
        assert rates == pytest.approx([times * rate for rate in logged(unbroken, "train/lr")])
    paths = [run / "checkpoints" / "epoch_0002" / "model" for run in (unbroken, broken)]
    saved, again = ((path / "model.safetensors").read_bytes() for path in paths)
    assert saved == again

    model, report = AutoModelForImageTextToText.from_pretrained(paths[0], output_loading_info=True)
    assert not any(report.values())
    before = AutoModelForImageTextToText.from_pretrained(cot_run / "checkpoints" / "epoch_0002" / "model").state_dict()
    after = {key: tensor[: len(before[key])] for key, tensor in model.state_dict().items()}  # but for the new tokens
    changed = {key.rpartition(".")[0] for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    language_model = {name for name in changed if "language_model" in name}
    assert len(language_model) == 2 * 7 and all("_proj" in name for name in language_model)
    assert changed - language_model and all("projector" in name for name in changed - language_model)

    base = AutoModelForImageTextToText.from_pretrained(cot_run / "checkpoints" / "epoch_0002" / "model")
    base.resize_token_embeddings(model.get_input_embeddings().num_embeddings, mean_resizing=False)
    apart = PeftModel.from_pretrained(base, paths[0].with_name("adapter"))
    tokenizer = AutoTokenizer.from_pretrained(paths[0])
    ids = tokenizer("<|latent|> Which?", return_tensors="pt").input_ids
    with torch.no_grad():
        expected, logits = (each(ids).logits[..., : len(tokenizer)] for each in (model, apart))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    evaluation = ("mode=eval_only", *COCONUT[1:4], "eval_config.coconut=true", "max_val_samples=4")
    train(*evaluation, "name=lora_eval", f"load_model_path={unbroken}/checkpoints/epoch_0002")
    assert samples(home / "runs" / "lora_eval", "final_coconut") == samples(unbroken, "epoch_0002_coconut")


def test_records_without_answers_are_predicted(home, train, cot_run):
    paths = (f"load_model_path={cot_run}", "val_path=aokvqa_v1p0_test.json")
    train("name=predict", "mode=eval_only", "eval_config.cot=true", *paths)
    run = home / "runs" / "predict"
    assert (summary(run, "cot")["accuracy"], summary(run, "cot")["n"]) == (None, 0)
    predicted = samples(run, "final_cot")
    assert len(predicted) == 3 and all(s["gold"] is None and s["correct"] is None for s in predicted)


def test_checkpoints_are_pruned_to_the_newest_and_the_best(home, train):
    train("name=pruned", "num_epochs=4", "max_checkpoints_to_keep=2", "keep_best_checkpoints=1", "max_val_samples=4")
    run = home / "runs" / "pruned"
    accuracies = logged(run, "eval/cot/accuracy")
    best = max(range(4), key=lambda epoch: (accuracies[epoch], epoch)) + 1
    kept = {path.name for path in (run / "checkpoints").glob("epoch_*")}
    assert kept == {"epoch_0003", "epoch_0004", f"epoch_{best:04d}"}
    assert (run / "checkpoints" / "latest").read_text() == "epoch_0004"


def test_bf16_vanilla_training_saves_only_improvements(home, train):
    settings = ("bf16=true", "save_only_improve=true", "num_epochs=2", "eval_every_epochs=2")
    train("name=vanilla", "mode=vanilla_train", *settings)
    run = home / "runs" / "vanilla"
    assert [path.name for path in (run / "checkpoints").glob("epoch_*")] == ["epoch_0002"]
    assert summary(run, "vanilla")["n"] == N_VAL
    model = AutoModelForImageTextToText.from_pretrained(run / "checkpoints" / "epoch_0002" / "model")
    assert model.dtype == torch.bfloat16


def test_an_epoch_that_is_worse_is_not_kept_if_only_improvements_are(home, train):
    settings = ("save_only_improve=true", "num_epochs=4", "max_train_samples=4", "max_checkpoints_to_keep=9")
    train("name=improving", *settings, patch=ACCURACIES.format([0.5, 0.25, 0.5, 0.75]))
    checkpoints = home / "runs" / "improving" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"epoch_0001", "epoch_0004", "latest"}
    states = [read_state(checkpoints / name) for name in ("epoch_0001", "epoch_0004")]
    assert [(state.accuracy, state.best_accuracy) for state in states] == [(0.5, 0.5), (0.75, 0.75)]
    assert (checkpoints / "latest").read_text() == "epoch_0004" and damage(checkpoints / "epoch_0004") == []


@pytest.mark.parametrize("dies", ["raise ValueError('in the evaluation')", "os.kill(os.getpid(), 9)"])
def test_an_evaluation_that_fails_costs_no_trained_epoch_and_is_made_up_for(home, train, cot_run, dies):
    """In the middle and at the end of a run, which ends as the unbroken one."""
    name = f"unevaluated_{dies.split()[0]}"
    run = home / "runs" / name
    for epoch in ("epoch_0001", "epoch_0002"):
        train(f"name={name}", "num_epochs=2", patch=FAILING.format(epoch=epoch, dies=dies), ok=False)
        folder = run / "checkpoints" / epoch
        assert damage(folder) == [] and not read_state(folder).evaluated
    train(f"name={name}", "num_epochs=2")
    for epoch in ("epoch_0001", "epoch_0002"):
        ours, theirs = (folder / "checkpoints" / epoch for folder in (run, cot_run))
        assert read_state(ours).accuracy == read_state(theirs).accuracy and read_state(ours).evaluated
        weights = [folder / "model" / "model.safetensors" for folder in (ours, theirs)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert samples(run, f"{epoch}_cot") == samples(cot_run, f"{epoch}_cot")
    assert losses(run) == losses(cot_run)


def test_a_prompts_date_is_the_day_on_which_its_run_began(home, train):
    """A chat template that writes the date: the run goes on, and is evaluated, with that of its first start."""
    model = shutil.copytree(home / "model", home / "dated_model")
    template = model / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %B %Y') }} " + template.read_text())
    settings = (f"model_id={model}", "max_train_samples=4", "max_val_samples=2")
    then, later = (DATE.format(day) for day in ("2026-01-05", "2026-12-31"))
    train("name=dated", *settings, "num_epochs=2", patch=then)
    train("name=dated_broken", *settings, "num_epochs=1", patch=then)
    train("name=dated_broken", *settings, "num_epochs=2", allow_change=("num_epochs",), patch=later)
    train("name=dated_later", *settings, "num_epochs=2", patch=later)
    unbroken, broken, other = (home / "runs" / f"dated{name}" for name in ("", "_broken", "_later"))
    assert read_state(broken / "checkpoints" / "epoch_0002").prompt_date == "2026-01-05"
    assert losses(broken) == losses(unbroken) != losses(other)
    weights = [run / "checkpoints" / "epoch_0002" / "model" / "model.safetensors" for run in (unbroken, broken, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes() != weights[2].read_bytes()
    evaluation = ("mode=eval_only", "eval_config.cot=true", "max_val_samples=2", f"load_model_path={unbroken}")
    train("name=dated_eval", *evaluation, patch=later)
    states = (read_state(path) for path in (unbroken / "checkpoints").glob("epoch_*"))
    best = max(states, key=lambda state: (state.accuracy, state.epoch))
    assert samples(home / "runs" / "dated_eval", "final_cot") == samples(unbroken, f"{best.name}_cot")


@pytest.mark.skipif(not SHARED.exists(), reason="the A-OKVQA records are not at hand")
def test_flattened_aokvqa_trains_and_evaluates_with_stand_in_images(home, train):
    """The real records, several tiles an image; the pictures are not at hand, so grey ones take their place."""
    folder = home / "aokvqa"
    folder.mkdir()
    shutil.copy(SHARED / "aokvqa_validation_100.json", folder)
    for i, record in enumerate(json.loads((folder / "aokvqa_validation_100.json").read_text())):
        path = folder / record["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (160 + i, 120), i).save(path)
    paths = [f"{split}_path=aokvqa_validation_100.json" for split in ("train", "val")]
    data = (f"data_dir={folder}", *paths, "answer_format=letter", "max_image_tiles=2")
    train("name=aokvqa", *COCONUT, *data, "max_train_samples=8", "batch_size=2", ranks=2)
    run = home / "runs" / "aokvqa"
    assert logged(run, "train/stage") == [0, 0, 1, 1, 2, 2]
    assert summary(run, "coconut")["n"] == 100


@pytest.mark.parametrize("stage", [0, 2])
def test_a_run_of_steps_that_are_not_finite_ends_with_their_examples(home, train, stage):
    (home / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    settings = (f"name=diverged_{stage}", f"deepspeed={home}/ds.json", "lr=1e30", "max_skipped_steps=3", "num_epochs=9")
    port = free_port()
    ended = train(*settings, "batch_size=2", ranks=2, ok=False, patch=PORT.format(port))
    assert not list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"))  # no shared memory is left
    [error] = ended.errors
    assert ended.codes == [1, 1]
    assert re.match(r"error: step \d+ \(stage 0\) is number 3 in a row that was skipped", error)
    ids = {record["question_id"] for record in json.loads((home / "scenes" / "aokvqa_v1p0_train.json").read_text())}
    named = re.findall(r"rank (\d): LOSS NOT FINITE of (.*)", "\n".join(ended.said))
    assert {rank for rank, _ in named} == {"0", "1"}
    assert set(", ".join(examples for _, examples in named).split(", ")) <= ids
    assert logged(home / "runs" / f"diverged_{stage}", "train/skipped_steps")[:2] == [1, 2]


@pytest.mark.skipif(not SHARED.exists(), reason="the ProsQA records are not at hand")
def test_a_text_only_model_trains_on_prosqa(home, train):
    records = SHARED / "prosqa_valid_100.json"
    tokenizer = build_tokenizer([records.read_text()], vocab_size=400)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    for part in (Qwen2ForCausalLM(config), tokenizer):
        part.save_pretrained(home / "text_model")
    data = (f"data_dir={SHARED}", "train_path=prosqa_valid_100.json", "val_path=prosqa_valid_100.json")
    limits = ("max_train_samples=8", "max_val_samples=5", "batch_size=2")
    train("name=prosqa", *COCONUT, *data, *limits, f"model_id={home}/text_model", ranks=2)
    run = home / "runs" / "prosqa"
    assert logged(run, "train/stage") == [0, 0, 1, 1, 2, 2]
    assert summary(run, "coconut")["n"] == 5 and summary(run, "coconut")["chance"] == 0.5


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            (["num_epoch=1"], "num_epoch (--set num_epoch=1): unknown key, did you mean num_epochs?"),
            (["train_path=none.json"], "none.json"),
            (["model_id=nowhere"], "'nowhere'"),
            (["load_model_path=nowhere"], "'nowhere'"),
            (["deepspeed=nowhere.json"], "nowhere.json"),
            (["resume=true"], "no checkpoint in"),
            (["kernel=triton"], "needs a GPU, or TRITON_INTERPRET=1"),
            (["coconut.latent_init_token=nonsense", *COCONUT], "latent_init_token"),
        ],
    )
    def test_get_one_message_and_write_nothing(self, home, train, settings, expected):
        ended = train("name=mistake", *settings, ok=False)
        assert len(ended.errors) == 1 and expected in ended.said[0]
        assert not (home / "runs" / "mistake").exists()

    def test_on_two_ranks_it_is_said_once_and_both_stop(self, home):
        records = json.loads((home / "scenes" / "aokvqa_v1p0_train.json").read_text())
        records[3]["image_id"] = 999
        (home / "scenes" / "broken.json").write_text(json.dumps(records))
        done = launch(home, "name=mistake", "train_path=broken.json", launcher="deepspeed", ok=False)
        assert (done.stdout + done.stderr).count("error: ") == 1
        assert records[3]["question_id"] in done.stderr
        assert not (home / "runs" / "mistake").exists()

    def test_a_port_that_is_taken_is_named(self, train):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            [error] = train("name=mistake", ok=False, patch=PORT.format(port)).errors
        assert error.startswith(f"error: port {port} of 127.0.0.1 is in use") and "--master_port" in error

    def test_a_clash_with_the_ds_config_names_both(self, home, train):
        (home / "clash.json").write_text('{"gradient_clipping": 0.5}')
        said = train("name=mistake", f"deepspeed={home}/clash.json", ok=False).said[0]
        assert "gradient_clipping is 0.5, but max_grad_norm in the run config is 1.0" in said

    def test_a_value_that_deepspeed_does_not_take_is_named_once(self, home, train):
        (home / "size.json").write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}}')
        said = train("name=mistake", f"deepspeed={home}/size.json", ok=False).said[0]
        assert said.count("size.json: zero_optimization.reduce_bucket_size: must be") == 1
        assert "(got 'big')" in said and "Traceback" not in said


class TestCommandLine:
    def test_help_answers_without_importing_torch(self):
        command = [sys.executable, "-X", "importtime", "train.py", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
        assert done.returncode == 0 and "--print-config" in done.stdout
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "argparse" in imported and not imported & {"torch", "transformers", "deepspeed"}

    def test_print_config_shows_what_would_run_and_stops(self, home):
        arguments = ["--set", "lr=5e-4", "--deepspeed_config", "other.json", "--print-config"]
        command = [sys.executable, str(REPO / "train.py"), str(home / "run.yaml"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=home)
        assert "lr: 0.0005" in done.stdout and "deepspeed: other.json" in done.stdout
        assert "seed: 0" in done.stdout
