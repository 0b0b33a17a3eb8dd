import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from homes import flip_a_bit, seal_whole
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import GenerationConfig

import multicoco
from multicoco.cli import main
from multicoco.engine.assembly import assemble
from multicoco.engine.weights import find_weights
from multicoco.export import folder
from multicoco.export.checkpoint import read_checkpoint

HERE = Path(__file__).parent
PROJECTED = "coconut={projection: mlp, norm: embedding, enabled: true, c_thought: 2, max_latent_stage: 3}"


def exported(run: Path, to: Path, *options: str) -> Path:
    assert main(["export", str(run), "--to", str(to), *options]) == 0
    return to


def questions(run: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Prompts of 0, 1 and many thoughts with what else the model takes, and MultiCoCo's own answers."""
    weights, checkpoint = find_weights(str(run)), read_checkpoint(str(run))
    config = checkpoint.config.model_copy(update={"mode": "eval_only", "method": "coconut"})
    assembly = assemble(config, weights, "2026-11-25", [], torch.device("cpu"))
    family, model, rng = assembly.backbone.family, assembly.backbone.model.eval(), torch.Generator().manual_seed(0)
    shown, inputs = [], {}
    if family.sees_images:
        blank = family.blank_tiles(1, torch.zeros(1))
        drawn = {key: torch.randn(x.shape, generator=rng) for key, x in blank.items() if x.is_floating_point()}
        inputs = blank | drawn
        shown = [family.config.image_token_id] * family.tile.tokens
    block = assembly.backbone.latent_tokens.block
    rows = [[40, 41, 42], [*shown, 43, 44, *block(1)], [45, *block(6), 46]]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    batch = {"input_ids": ids, "attention_mask": mask, **inputs}
    config = GenerationConfig(
        max_new_tokens=8, do_sample=False, eos_token_id=assembly.backbone.end_token_ids, pad_token_id=0
    )
    tokens = assembly.reasoner.generate(**batch, generation_config=config)
    assert model.generation_config.suppress_tokens  # which it takes from there
    return batch, tokens


def test_without_multicoco_the_tokens_are_multicocos_own(make_run, tmp_path, one_thread):
    runs = [make_run("text", PROJECTED), make_run("text"), make_run("internvl"), make_run("qwen3_vl")]
    cases, expected = [], []
    for place, run in enumerate(runs):
        to = exported(run, tmp_path / f"model_{place}")
        batch, tokens = questions(run)
        kind = "AutoModelForCausalLM" if place < 2 else "AutoModelForImageTextToText"
        cases.append((str(to), kind, batch))
        expected.append(torch.cat([batch["input_ids"], tokens], dim=1))
    torch.save(cases, tmp_path / "cases.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(HERE / "without_multicoco.py"), str(tmp_path / "cases.pt")]
    environment |= {"HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}  # where transformers puts code of models
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answers, said = torch.load(tmp_path / "answers.pt", weights_only=True)
    for answer, own in zip(answers, expected, strict=True):
        assert torch.equal(answer, own)
    assert said.rstrip("\n") == multicoco.load(runs[0]).ask(None, "What is in the middle").text != ""


def test_the_card_says_what_it_is_and_how_good_and_takes_nothing_for_markup(make_run, tmp_path, capsys):
    hostile = 'train_path="a|b](x) <script>x&lt;\\n---\\n# *boo*.json"'
    instruction = "reasoning_instruction='```{{ 7 * 7 }}\\n```'"
    run = make_run("text", hostile, "val_path=hf://owner/set?split=test", instruction)
    to = exported(run, tmp_path / "out")
    assert str(to) in capsys.readouterr().out
    text = (to / "README.md").read_text()
    card = ModelCard(text)  # reads and checks what is in front
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.datasets == ["owner/set"] and card.data.base_model is None
    first, second = card.data.eval_results
    assert (first.metric_value, first.metric_args["n"], first.dataset_type) == (0.5, 6, "owner/set")
    assert first.metric_name == "accuracy (coconut)" and second.metric_name == "accuracy (coconut.zero)"
    assert "| coconut | 0.500 | 0.188 to 0.812 | 6 | 0.250 |" in text
    assert "| coconut.zero | 0.000 | 0.000 to 0.390 | 6 | unknown |" in text
    assert r"aokvqa/multiple\_choice: 0.500 (n = 6)" in text and "| seed | 7 |" in text
    assert r"a\|b\]\(x\) &lt;script&gt;x&amp;lt; --- \# \*boo\*.json" in text
    assert [line for line in text.splitlines() if line.startswith("```")] == ["```python", "```"]
    assert "{{ 7 * 7 }}" in text


def test_it_decodes_as_it_was_evaluated(make_run, tmp_path):
    run = make_run("text", "generation={max_new_tokens: 5, num_beams: 3}")
    config = GenerationConfig.from_pretrained(exported(run, tmp_path / "out"))
    assert (config.max_new_tokens, config.num_beams, config.do_sample) == (5, 3, False)
    tokenizer = read_checkpoint(str(run)).reader.tokenizer
    rows = json.loads((run / "checkpoints" / "epoch_0003" / "model" / "config.json").read_text())["vocab_size"]
    assert config.suppress_tokens == [*range(len(tokenizer), rows)] and config.eos_token_id == [tokenizer.eos_token_id]


@pytest.mark.parametrize("settings", [("mode=cot_train", "coconut.enabled=false"), ("coconut.thoughts=pause",)])
def test_what_does_not_think_in_passes_has_no_code_for_it(make_run, tmp_path, settings):
    to = exported(make_run("text", *settings), tmp_path / "out")
    assert not (to / "custom_generate").exists() and "custom_generate" not in (to / "README.md").read_text()


@pytest.mark.parametrize("setting", ["thoughts=noise", "thoughts=borrowed", "jacobi_iterations=1"])
def test_thoughts_that_transformers_cannot_make_are_refused(make_run, tmp_path, setting, capsys):
    assert main(["export", str(make_run("text", f"coconut.{setting}")), "--to", str(tmp_path / "out")]) == 1
    assert "evaluate it with MultiCoCo" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def answers(code: str, monkeypatch, folder: Path) -> str:
    """What the code of a card says where the folder stands."""
    monkeypatch.chdir(folder.parent)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(re.findall(r"```python\n(.*?)```", code, re.DOTALL)[0], {})
    return said.getvalue().rstrip("\n")


def test_thoughts_that_are_words_are_exported_and_say_the_same(make_run, tmp_path, monkeypatch):
    run = make_run("text", "mode=train", "method=c_mtp", "c_mtp.words=3")
    card = (exported(run, tmp_path / "out") / "README.md").read_text()
    assert answers(card, monkeypatch, tmp_path / "out") == multicoco.load(run).ask(None, "What is in the middle").text


def test_lora_is_exported_apart_or_merged_and_says_the_same(make_run, tmp_path, monkeypatch, capsys):
    run = make_run("text", PROJECTED, "lora.rank=4")
    own = multicoco.load(run).ask(None, "What is in the middle").text
    apart, merged = exported(run, tmp_path / "apart"), exported(run, tmp_path / "merged", "--merge")
    assert {path.name for path in apart.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (apart / "model.safetensors").exists() and not (merged / "adapter_config.json").exists()
    for to in (apart, merged):
        card = (to / "README.md").read_text()
        assert ("PeftModel" in card) == (to == apart) and "rank 4" in card
        assert answers(card, monkeypatch, to) == own != ""
    assert ModelCard((apart / "README.md").read_text()).data.library_name == "peft"
    capsys.readouterr()
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--push", "me/thinker"]) == 1
    assert "is a folder of this machine" in capsys.readouterr().err
    assert main(["export", str(make_run("text")), "--to", str(tmp_path / "out"), "--merge"]) == 1
    assert "was trained without LoRA" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints" / "epoch_0003" / "adapter")
    seal_whole(run / "checkpoints" / "epoch_0003")
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 1
    assert "Export it with --merge" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_card_of_a_model_that_sees_says_what_it_says_here(make_run, tmp_path, monkeypatch, one_thread):
    """Of one whose processor has no part for videos, which would need torchvision."""
    run = make_run("generic")
    to = exported(run, tmp_path / "out")
    Image.effect_noise((84, 60), 90).convert("RGB").save(tmp_path / "image.png")
    own = multicoco.load(run).ask(tmp_path / "image.png", "What is in the middle").text
    assert answers((to / "README.md").read_text(), monkeypatch, to) == own != ""


def test_rows_of_new_tokens_that_train_apart_are_in_the_whole_model(make_run, tmp_path, monkeypatch):
    run = make_run("text", "lr={language_model: 1e-3, new_tokens: 1e-2}")
    assert not (run / "checkpoints" / "epoch_0003" / "adapter").exists()
    names = load_file(run / "checkpoints" / "epoch_0003" / "model" / "model.safetensors").keys()
    assert names == load_file(run.parents[1] / "model" / "model.safetensors").keys()
    to = exported(run, tmp_path / "out")
    own = multicoco.load(run).ask(None, "What is in the middle").text
    assert answers((to / "README.md").read_text(), monkeypatch, to) == own != ""


@pytest.fixture(scope="module")
def run(make_run) -> Path:
    return make_run("text")


def test_nothing_is_overwritten_and_mistakes_get_one_message(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    model, damaged = run.parents[1] / "model", tmp_path / "damaged"
    for arguments, expected in (
        ([str(run), "--to", str(tmp_path / "full")], "full is not empty"),
        ([str(run), "--to", str(tmp_path / "full" / "mine.txt")], "mine.txt is not empty"),
        ([str(model), "--to", str(tmp_path / "out")], "model is no checkpoint of a run"),
        ([str(tmp_path / "nowhere"), "--to", str(tmp_path / "out")], "nowhere is no checkpoint of a run"),
        ([str(run), "--to", str(tmp_path / "out"), "--push", "no-owner"], "--push no-owner: give the owner"),
        ([str(run), "--to", str(tmp_path / "full" / "mine.txt" / "out")], "cannot be written"),
    ):
        assert main(["export", *arguments]) == 1
        message = capsys.readouterr().err
        assert expected in message and message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and not damaged.exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == "precious"


def test_a_damaged_checkpoint_is_not_exported(make_run, tmp_path, capsys):
    run = make_run("text")
    flip_a_bit(run / "checkpoints" / "epoch_0003" / "model" / "model.safetensors")
    assert main(["export", str(run / "checkpoints" / "epoch_0003"), "--to", str(tmp_path / "out")]) == 1
    assert "are damaged: model.safetensors" in capsys.readouterr().err and not [*tmp_path.iterdir()]


class Hub:
    """Stands for huggingface_hub's HfApi."""

    calls: list = []  # noqa: RUF012
    error: Exception | None = None

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, **options):
        if self.error:
            raise self.error
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_it_is_uploaded_under_its_name(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder, "HfApi", Hub)
    to = exported(run / "checkpoints" / "epoch_0003" / "model", tmp_path / "out", "--push", "me/thinker")
    assert Hub.calls[0] == ("create", "me/thinker", {"exist_ok": True})
    assert Hub.calls[1] == ("upload", "me/thinker", sorted(path.name for path in to.iterdir()))
    assert "https://huggingface.co/me/thinker" in capsys.readouterr().out
    assert "folder = 'me/thinker'" in (to / "README.md").read_text()
    monkeypatch.setattr(Hub, "error", OSError("no token\nmore"))
    assert main(["export", str(run), "--to", str(tmp_path / "again"), "--push", "me/thinker"]) == 1
    message = capsys.readouterr().err
    assert "is written, but could not be uploaded to me/thinker (no token)" in message and "hf upload" in message
    assert (tmp_path / "again" / "README.md").exists()
