"""What a run's start does with a model that nobody has tried."""

import pytest
import torch
from homes import make_home
from transformers.models.llama import modeling_llama

from multicoco.config import load_config
from multicoco.data.sources import load_examples
from multicoco.engine import assembly
from multicoco.engine.assembly import assemble, weights_of
from multicoco.engine.records import load_records
from multicoco.engine.thought_weights import save_thoughts
from multicoco.errors import UserError
from multicoco.methods import method_class
from multicoco.models.backbone import load_backbone
from multicoco.models.tiny import TINY

CONFIG = "mode: coconut_train\ncoconut: {enabled: true, first_stage: 2, max_latent_stage: 2}\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("assembly"), 4, 2, CONFIG)
    texts = [example.question for example in load_examples(home / "scenes" / "aokvqa_v1p0_train.json", home / "scenes")]
    TINY["generic"](texts, home / "unknown", hidden_size=32, text_layers=2)
    return home


def start(home, *overrides):
    config = load_config(home / "run.yaml", overrides)
    examples = load_records(config, config.train_path, None)
    return config, examples, assemble(config, weights_of(config), "2026-01-01", examples, torch.device("cpu"))


@pytest.mark.parametrize("mode", ["coconut_train", "eval_only"])
def test_a_projection_beside_a_state_dict_of_the_authors_form_is_loaded_with_it(home, tmp_path, mode):
    projected = ("coconut.projection=mlp", "self_check=false")
    *_, made = start(home, "seed=1", *projected)
    model = made.backbone.model
    with torch.no_grad():
        for parameter in (*model.parameters(), *made.reasoner.thought_source.parameters()):
            parameter.add_(0.01)
    rows = len(load_backbone(str(home / "model")).tokenizer)  # without the latent tokens
    heads = {name for name, tensor in model.state_dict().items() if "embed_tokens" in name or "lm_head" in name}
    state = {name: x[:rows] if name in heads else x for name, x in model.state_dict().items()}
    torch.save({f"base_causallm.{name}": x.clone() for name, x in state.items()}, tmp_path / "checkpoint_3")
    evaluated = ("eval_config.coconut=true",) if mode == "eval_only" else ()
    settings = (f"mode={mode}", f"load_model_path={tmp_path / 'checkpoint_3'}", *evaluated, *projected)
    if mode == "eval_only":
        with pytest.raises(UserError, match=r"thoughts.safetensors is not beside the weights"):
            start(home, *settings)
    save_thoughts(tmp_path, made.reasoner.thought_source.state_dict())
    *_, found = start(home, *settings)
    for name, tensor in made.reasoner.thought_source.state_dict().items():
        assert torch.equal(found.reasoner.thought_source.state_dict()[name], tensor)
    weight = "model.multi_modal_projector.linear_1.weight"
    assert torch.equal(found.backbone.model.state_dict()[weight], model.state_dict()[weight])


def remembering(monkeypatch):
    """A layer that keeps something of one call for the next."""
    own, kept = modeling_llama.LlamaMLP.forward, [torch.zeros(())]

    def forward(self, hidden):
        out = own(self, hidden) + kept[0]
        kept[0] = hidden.mean()
        return out

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", forward)


def ignoring_the_cache(monkeypatch):
    """A layer that mixes the columns that it is given by itself."""
    monkeypatch.setattr(
        modeling_llama.LlamaAttention, "forward", lambda self, hidden_states, **_: (hidden_states.cumsum(1), None)
    )


def test_a_good_model_is_taken_and_trains_a_step(home):
    config, examples, made = start(home, f"model_id={home}/unknown")
    latent = made.backbone.latent_tokens
    method = method_class(config.trained_method)(config, latent)
    rows = []
    for example in examples:
        tokens, inputs = made.encoder(example, method.asked)
        rows.append((*method.train_row(tokens, 2, 0, example.id), inputs))
    length = max(len(ids) for ids, _, _ in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), length, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "labels": torch.full((len(rows), length), -100),
    }
    for i, (ids, labels, _) in enumerate(rows):
        batch["input_ids"][i, : len(ids)], batch["labels"][i, : len(ids)] = torch.tensor(ids), torch.tensor(labels)
        batch["attention_mask"][i, : len(ids)] = 1
    batch |= made.backbone.family.batch([inputs for _, _, inputs in rows])
    assert (batch["input_ids"] == latent.latent).any() and len(batch["pixel_values"]) == len(examples)
    optimizer = torch.optim.AdamW(made.reasoner.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        losses.append(made.reasoner(**batch).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("plant", [remembering, ignoring_the_cache])
def test_one_that_is_not_exact_is_refused_with_both_losses(home, monkeypatch, plant):
    plant(monkeypatch)
    message = r"do not compute what the llava model computes.* loss is \d\.\d+ through the passes and \d\.\d+ by rec"
    with pytest.raises(UserError, match=message):
        start(home, f"model_id={home}/unknown")
    start(home, f"model_id={home}/unknown", "self_check=false")


def test_one_that_learns_otherwise_is_refused_by_its_worst_parameter_where_it_is_trained(home, monkeypatch):
    own = modeling_llama.LlamaMLP.forward
    cut = lambda self, hidden: own(self, hidden.detach() if hidden.shape[1] == 1 else hidden)  # noqa: E731
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", cut)
    with pytest.raises(UserError, match=r"do not learn what the llava model learns.* the gradient of \S+\.weight is"):
        start(home, f"model_id={home}/unknown")
    start(home, f"model_id={home}/unknown", "mode=eval_only", "eval_config.cot=true")


def test_only_models_that_nobody_has_tried_are_compared_so(home, monkeypatch):
    compared = []
    monkeypatch.setattr(assembly, "require_exact", lambda model, *args, **how: compared.append(model.config.model_type))
    for overrides in (("model_id={}/unknown",), (), ("model_id={}/unknown", "self_check=false")):
        start(home, *(override.format(home) for override in overrides))
    assert compared == ["llava"]


def test_that_caps_leave_the_fast_kernels_out_is_said_once(home, capsys):
    TINY["gemma2"](["red blue"], home / "capped", hidden_size=32, text_layers=2)
    for name, times in (("capped", 1), ("unknown", 0)):
        config = load_config(home / "run.yaml", [f"model_id={home / name}"])
        assembly._load(config, weights_of(config), torch.device("cpu"), None)
        assert capsys.readouterr().out.count("kernel: reference") == times
