import pytest
import torch
from peft import PeftModel
from reference import (
    IMAGE,
    IMAGE_TOKENS,
    LATENT,
    MODELS,
    SIGHTED,
    assert_same_gradients,
    gradients,
    internvl,
    qwen2,
    rescaled,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from zero_cases import collate

from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.checkpointing import checkpoint_activations
from multicoco.models.families import family_of
from multicoco.models.freezing import freeze
from multicoco.models.lora import add_lora, add_token_rows, merge_lora, save_lora

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
ALPHA, RANK = 12, 4
TEXTS = {"qwen2": qwen2, "gemma2": lambda: rescaled("gemma2")}


def adapted(model, **options):
    """With adapters that have been trained: B is no longer zero, and neither are the latent token's rows."""
    add_lora(model, RANK, ALPHA, **options)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "trainable_tokens" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("target_modules", [None, ["q_proj", "v_proj"]])
def test_the_language_models_adapters_train_and_the_other_parts_as_before(target_modules):
    model = internvl()
    model.model.vision_tower.requires_grad_(False)
    others = {name for name in trained(model) if "language_model" not in name and "lm_head" not in name}
    add_lora(model, RANK, ALPHA, target_modules=target_modules)
    own = trained(model) - others
    assert others <= trained(model) and all("language_model.layers" in name for name in own)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in own} == set(target_modules or LINEAR)
    assert len(own) == 2 * 3 * len(target_modules or LINEAR)  # A and B of three layers


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_tokens_rows_are_all_that_trains_of_embeddings_and_head(tied):
    model = internvl(tied=tied)
    before = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    add_lora(model, RANK, ALPHA, new_tokens=[LATENT])
    assert len([name for name in trained(model) if "embed_tokens" in name or "lm_head" in name]) == 2 - tied
    batch = collate(3, range(4))
    reasoner = LatentReasoner(model, LATENT)
    reasoner.latent_token_id = -1  # or a latent token's row would not be read
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    reasoner(**batch).loss.backward()
    optimizer.step()
    for module, old in zip((model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True):
        changed = (module.weight != old).any(dim=1).nonzero().flatten().tolist()
        assert changed == [LATENT]


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_is_a_plain_one_that_computes_the_same(tmp_path, name):
    model = adapted(MODELS[name](), new_tokens=[LATENT]).eval()
    model.save_pretrained(tmp_path, state_dict=merge_lora(model, model.state_dict()))
    auto_model = AutoModelForImageTextToText if name == "internvl" else AutoModelForCausalLM
    plain, report = auto_model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and type(plain) is type(MODELS[name]())
    batch = collate(3, range(4))
    if name != "internvl":
        del batch["pixel_values"]
    with torch.no_grad():
        expected, logits = model(**batch).logits, plain(**batch).logits
        untrained = MODELS[name]().eval()(**batch).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert (logits - untrained).abs().max() > 1e-2


def test_the_adapters_product_is_scaled_by_alpha_over_rank():
    model, before = adapted(qwen2()), qwen2().state_dict()
    state, name = model.state_dict(), "model.layers.1.mlp.up_proj"
    product = state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"]
    merged = merge_lora(model, state)
    torch.testing.assert_close(merged[f"{name}.weight"], before[f"{name}.weight"] + ALPHA / RANK * product)
    assert merged.keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in merge_lora(qwen2(), before).items())


def test_dropout_is_the_same_when_activations_are_recomputed():
    losses, expected = [], None
    for dropout, checkpointing in ((0.0, False), (0.3, False), (0.3, True)):
        model = adapted(internvl(), dropout=dropout, new_tokens=[LATENT]).train()
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(2)
        loss = LatentReasoner(model, LATENT)(**collate(3, range(4))).loss
        loss.backward()
        losses.append(loss.item())
        if checkpointing:
            assert_same_gradients(model, expected, 1e-5)
        expected = gradients(model)
    assert losses[1] == pytest.approx(losses[2], rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-4


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(UserError, match=r"target_modules: qwen2 has no linear layers query.*it has down_proj, gate"):
        add_lora(qwen2(), RANK, ALPHA, target_modules=["q_proj", "query"])
    biased = qwen2()
    biased.lm_head = torch.nn.Linear(32, 64)
    with pytest.raises(UserError, match="the head of qwen2 has a bias"):
        add_lora(biased, RANK, ALPHA, new_tokens=[LATENT])
    add_lora(biased, RANK, ALPHA)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["internvl", "qwen3_vl", "smolvlm", *TEXTS])
def test_adapters_apart_and_merged_and_in_training_compute_the_same(tmp_path, name, tied):
    """By plain peft on the base, with a projector that trains beside them and a vision tower that does not."""
    make = {**SIGHTED, **TEXTS}[name]
    options = {} if name in TEXTS else {"tied": tied}
    model = make(**options)
    if name not in TEXTS:
        freeze(model, vision_tower=True)
    adapted(model, new_tokens=[LATENT]).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" not in path and "trainable_tokens" not in path:
                parameter.add_(0.1 * torch.randn_like(parameter))
    state = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}  # as a checkpoint has it
    save_lora(model, state, "somewhere", tmp_path / "adapter")
    apart = PeftModel.from_pretrained(make(**options), tmp_path / "adapter").eval()
    merged = make(**options).eval()
    merged.load_state_dict(merge_lora(model, model.state_dict()))
    row = torch.tensor([[20, *[IMAGE] * (IMAGE_TOKENS if name not in TEXTS else 1), 21, LATENT, 22]])
    inputs = {} if name in TEXTS else images(model)
    with torch.no_grad():
        expected, *others = (m(row, **inputs).logits for m in (model, apart, merged, apart.merge_and_unload()))
        before = make(**options).eval()(row, **inputs).logits
    for logits in others:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - before).abs().max() > 1e-2
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert not any("language_model.layers" in n and "lora_" not in n for n in names)  # nothing of the base's own


def test_what_peft_would_lose_is_not_saved_apart(tmp_path):
    model = SIGHTED["llava_onevision"]()
    add_lora(model, RANK, ALPHA)
    save_lora(model, model.state_dict(), "somewhere", tmp_path / "newline")
    freeze(model, projector=True)
    save_lora(model, model.state_dict(), "somewhere", tmp_path / "adapter")
    save_lora(qwen2(), qwen2().state_dict(), "somewhere", tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def images(model) -> dict[str, torch.Tensor]:
    """One picture of four tokens."""
    family = family_of(model.config)
    if "image_grid_thw" not in family.input_names:
        shape = (1, 3, 56, 56) if model.config.model_type == "internvl" else (1, 1, 3, 56, 56)
        return {"pixel_values": torch.randn(shape)}
    pixels = {"pixel_values": torch.randn(16, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, 2, 8]])}
    row = torch.tensor([[20, *[IMAGE] * IMAGE_TOKENS, 21, LATENT, 22]])
    return family.own_inputs(row, pixels)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_rows_apart_train_as_rows_of_the_tables_with_an_adamw_of_their_own(tied):
    plain, model = internvl(tied=tied), internvl(tied=tied)
    with pytest.raises(UserError, match=r"lr.new_tokens: the head of qwen2 has a bias"):
        biased = qwen2()
        biased.lm_head = torch.nn.Linear(32, 64)
        add_token_rows(biased, [LATENT])
    add_token_rows(model, [LATENT])
    assert {name for name in trained(model) if "trainable_tokens" not in name} == {
        name.replace("embed_tokens.", "embed_tokens.token_adapter.base_layer.").replace(
            "lm_head.", "lm_head.token_adapter.base_layer."
        )
        for name in trained(plain)
    }
    rows = [p for name, p in model.named_parameters() if "trainable_tokens" in name]
    others = [p for name, p in model.named_parameters() if "trainable_tokens" not in name]
    optimizer = torch.optim.AdamW([{"params": others, "lr": 1e-2}, {"params": rows, "lr": 0.1}])
    tables = list(
        {id(m.weight): m.weight for m in (plain.get_input_embeddings(), plain.get_output_embeddings())}.values()
    )
    own_rows = [torch.nn.Parameter(table[LATENT].detach().clone()) for table in tables]
    own = torch.optim.AdamW([{"params": [*plain.parameters()], "lr": 1e-2}, {"params": own_rows, "lr": 0.1}])
    for step in range(3):
        for each, adamw in ((model, optimizer), (plain, own)):
            adamw.zero_grad()
            reasoner = LatentReasoner(each, LATENT)
            reasoner.latent_token_id = -1  # or a latent token's row would not be read
            reasoner(**collate(step, range(4))).loss.backward()
        for table, row in zip(tables, own_rows, strict=True):
            row.grad = table.grad[LATENT].clone()
            table.grad[LATENT] = 0
        optimizer.step()
        own.step()
        with torch.no_grad():
            for table, row in zip(tables, own_rows, strict=True):
                table[LATENT] = row
    expected, merged = plain.state_dict(), merge_lora(model, model.state_dict())
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert (expected["lm_head.weight"][LATENT] - internvl(tied=tied).lm_head.weight[LATENT]).abs().max() > 0.05
