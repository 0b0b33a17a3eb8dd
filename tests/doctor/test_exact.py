"""`multicoco doctor --exact`, in process."""

import pytest
import torch
from homes import make_home
from transformers.models.qwen2 import modeling_qwen2

from multicoco.cli import main
from multicoco.models.backbone import load_backbone


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("exact"), 4, 2, "mode: cot_train\n")
    backbone = load_backbone(str(home / "model"))
    with torch.no_grad():
        backbone.model.lm_head.weight.mul_(2)
    backbone.save_pretrained(home / "trained")
    return home


def measured(printed):
    """The two losses, as they are printed."""
    lines = {line[:26].strip(): line[26:] for line in printed.splitlines()}
    assert lines["tolerance"].startswith("1e-04 of the spread of the logits: rounding in fp32")
    return float(lines["loss, through the passes"]), float(lines["loss, by recomputing"])


def test_it_prints_both_losses_of_the_weights_that_the_config_names(home, capsys):
    assert main(["doctor", "--exact", str(home / "run.yaml")]) == 0
    printed = capsys.readouterr().out
    passes, recomputed = measured(printed)
    assert passes == pytest.approx(recomputed, rel=1e-5)
    assert "a internvl model, of the family internvl, which tests hold" in printed and "they agree" in printed
    assert "\ngradients                 of all " in printed and "tolerance of gradients    1e-03: " in printed
    assert main(["doctor", "--exact", str(home / "run.yaml"), "--set", f"load_model_path={home}/trained"]) == 0
    printed = capsys.readouterr().out
    assert f"{home}/trained: a internvl model" in printed
    assert measured(printed)[0] != pytest.approx(passes, rel=1e-3)


EVALUATION = ("mode=eval_only", "train_path=null", "eval_config.cot=true")


@pytest.mark.parametrize("settings", [(), EVALUATION])
def test_a_model_that_is_not_exact_ends_it_badly(home, capsys, monkeypatch, settings):
    own = modeling_qwen2.Qwen2MLP.forward
    monkeypatch.setattr(modeling_qwen2.Qwen2MLP, "forward", lambda self, x: own(self, x + 0.1 * x.cumsum(1)))
    overrides = [part for setting in settings for part in ("--set", setting)]
    assert main(["doctor", "--exact", str(home / "run.yaml"), *overrides]) == 1
    captured = capsys.readouterr()
    passes, recomputed = measured(captured.out)
    assert "they agree" not in captured.out
    assert f"{passes:.6f} through the passes and {recomputed:.6f} by recomputing" in captured.err


def test_a_model_that_learns_otherwise_ends_it_badly_unless_it_only_evaluates(home, capsys, monkeypatch):
    own = modeling_qwen2.Qwen2MLP.forward
    cut = lambda self, x: own(self, x.detach() if x.shape[1] == 1 else x)  # noqa: E731
    monkeypatch.setattr(modeling_qwen2.Qwen2MLP, "forward", cut)
    assert main(["doctor", "--exact", str(home / "run.yaml")]) == 1
    captured = capsys.readouterr()
    worst = captured.out.split("furthest apart")[1].split("largest entry, ")[1].split("\n")[0]
    assert f"the loss is right, {measured(captured.out)[0]:.6f}, and the gradient of {worst} is" in captured.err
    evaluation = [part for setting in EVALUATION for part in ("--set", setting)]
    assert main(["doctor", "--exact", str(home / "run.yaml"), *evaluation]) == 0
    assert "gradients                 none, nothing is trained\nthey agree" in capsys.readouterr().out
