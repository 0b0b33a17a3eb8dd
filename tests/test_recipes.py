"""The run configs of args/: all load, and those of published settings have these settings."""

from functools import cache
from pathlib import Path

import pytest
from homes import REPO
from transformers import GPT2Config, LlamaConfig

from multicoco.cli import main
from multicoco.config import RunConfig, load_config
from multicoco.methods import method_class
from multicoco.study.spec import load_study

RECIPES = sorted(
    path for path in (REPO / "args").rglob("*.yaml") if path.name != "base.yaml" and "studies" not in path.parts
)
STUDIES = sorted(
    path
    for path in (REPO / "args" / "studies").glob("*.yaml")
    if "\narms:\n" in path.read_text() and "short" not in path.stem  # which are parts of others
)
LLAMA_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)


load = cache(load_config)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_starts_from_a_run_that_another_makes(recipe):
    config = load(recipe)
    assert config.name == config.run_dir.name
    starts = {load(other).run_dir for other in RECIPES if load(other).mode != "eval_only"}
    assert config.load_model_path is None or Path(config.load_model_path) in starts


def test_decoding_is_greedy_but_with_the_published_settings():
    """And so in whatever inherits them."""
    sampling = {path.stem: load(path).generation for path in RECIPES if load(path).generation.do_sample}
    published = {"coconut": (0.8, 0.9), "coconut_eval": (0.8, 0.9), "cot": (1.0, 0.9), "cot_eval": (1.0, 0.9)}
    published |= {"vanilla_eval": (0.6, 0.8)}
    for name, settings in published.items():
        generation = sampling[f"aokvqa_{name}"]
        assert (generation.temperature, generation.top_p) == settings
    assert sampling.keys() == {f"aokvqa_{name}" for name in published}
    assert not RunConfig.model_fields["generation"].default.do_sample


@pytest.mark.parametrize(
    ("name", "stages", "latents"),
    [
        ("prosqa_coconut", [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5 + [5] * 5 + [6] * 5 + [7] * 15, 6),
        ("prontoqa_coconut", [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5 + [5] * 5 + [6] * 5 + [7] * 15, 6),
        ("gsm8k_coconut", [1] * 3 + [2] * 3 + [3] * 3 + [4] * 16, 6),
        ("gsm8k_llama_coconut", [1] * 3 + [2] * 3 + [3] * 3 + [4] * 16, 6),
    ],
)
def test_the_papers_course(name, stages, latents):
    config = load(REPO / "args" / f"{name}.yaml")
    schedule = method_class(config.trained_method)(config).schedule
    assert [schedule.stage(epoch) for epoch in range(config.num_epochs)] == stages
    assert schedule.eval_latents(stages[-1], n_steps=1) == latents  # padded to the most
    assert config.batch_size * config.gradient_accumulation_steps * 4 == 128
    assert config.lr == (1e-5 if "llama" in name else 1e-4)


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_arms_of_a_study_train_for_as_long_from_the_same_weights(file):
    study = load_study(file)
    chains = {arm: [study.training_config(link) for link in study.chain(arm)] for arm in study.spec.arms}
    steps = {arm: sum(config.num_epochs for config in chain) for arm, chain in chains.items() if arm != "start"}
    assert len(set(steps.values())) == 1
    begun = {(chain[-1].model_id, chain[-1].load_model_path) for chain in chains.values()}
    task, data = file.stem.removeprefix("methods_"), "runs/studies/data"
    own = f"{data}/{task}"
    assert begun == {(f"{own}/model", f"{own}/base") if task in ("text", "prosqa") else (f"{data}/model", None)}
    assert {study.spec.role(arm) for arm in steps} >= {"hidden", "cot", "direct", "no_thoughts", "pause"}


@pytest.mark.parametrize("recipe", sorted((REPO / "args").glob("m3cot_*.yaml")), ids=lambda path: path.stem)
def test_m3cot_is_trained_on_as_aokvqa_is(recipe):
    config, other = load(recipe), load(recipe.with_name(recipe.name.replace("m3cot", "aokvqa")))
    ours, theirs = config.model_dump(), other.model_dump()
    differing = {key for key in ours if ours[key] != theirs[key]}
    assert differing - {"load_model_path"} == {"name", "train_path", "val_path", "generation"}
    assert {str(config.train_path), str(config.val_path)} == {
        f"hf://LightChen2333/M3CoT?split={split}" for split in ("train", "validation")
    }


@pytest.mark.parametrize(
    ("recipe", "model", "parameters"),
    [
        ("gsm8k_llama_coconut", LLAMA_1B, "1.24 billion"),
        ("gsm8k_coconut", GPT2Config(), "0.12 billion"),
        ("prosqa_coconut", GPT2Config(), "0.12 billion"),
    ],
)
def test_the_papers_models_fit_four_gpus(tmp_path, capsys, recipe, model, parameters):
    """Planned from the model's config.json alone."""
    model.save_pretrained(tmp_path)
    file = str(REPO / "args" / f"{recipe}.yaml")
    assert main(["plan", file, "--gpus", "4", "--set", f"model_id={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert parameters in printed and "Chosen, as the fastest that fits" in printed
