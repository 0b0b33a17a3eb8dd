"""Whole evaluations that look into thoughts, against everything computed again in plain PyTorch."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from homes import make_home
from transformers import Qwen2Config, Qwen2ForCausalLM

from multicoco.config import RunConfig, load_config
from multicoco.engine.assembly import Assembly, assemble, weights_of
from multicoco.engine.records import load_records
from multicoco.errors import UserError
from multicoco.evaluation.evaluator import Evaluator, evaluation_methods
from multicoco.evaluation.lens import check_lens
from multicoco.evaluation.thoughts import Thoughts, read_thoughts
from multicoco.interventions import draw, order_of
from multicoco.latent.thoughts import Projected, Projection, hidden_state
from multicoco.models.tiny import build_tokenizer
from multicoco.tracking import Tracker

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = """mode: eval_only
self_check: false
generation: {max_new_tokens: 3}
coconut: {enabled: true, c_thought: 2, max_latent_stage: 3}
eval_config: {coconut: true, thoughts: true, thoughts_top_k: 4}
"""
STAGE = 3
TEXT = [
    {"question": f"Where does {name} go from {place}?", "steps": steps, "answer": place}
    for name, place, steps in (
        ("Ann", "home", ["Ann goes to work.", "work, then home."]),
        ("Bo", "work", ["Bo stays."]),
        ("Cy", "sea", ["Cy goes home, - home.", "Then to the sea.", "home again"]),
        ("Di", "town", ["Di goes to town.", "town, then sea.", "town again"]),
    )
]
Run = Callable[..., Path]


@pytest.fixture(scope="module", params=["internvl", "text"])
def prepared(request, tmp_path_factory, one_thread) -> tuple[Path, Assembly]:
    """A run config, and a model of random weights whose last norm, applied twice, would be told from once."""
    home = make_home(tmp_path_factory.mktemp("lens"), 8, 5, CONFIG)
    config = home / "run.yaml"
    if request.param == "text":
        (home / "text.json").write_text(json.dumps(TEXT))
        tokenizer = build_tokenizer([json.dumps(TEXT)] * 3, 300)
        special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **special))
        for part in (model, tokenizer):
            part.save_pretrained(home / "text_model")
        lines = config.read_text().replace(f"{home}/model", f"{home}/text_model")
        config.write_text(lines.replace(f"{home}/scenes", str(home)).replace("aokvqa_v1p0_val.json", "text.json"))
    assembly = assemble(load_config(config), weights_of(load_config(config)), "2026-01-01", [], torch.device("cpu"))
    torch.manual_seed(1)
    for name, parameter in assembly.backbone.model.named_parameters():
        if "language_model" in name or request.param == "text":
            parameter.data += 0.3 * torch.randn_like(parameter)
    return config, assembly


@pytest.fixture(scope="module")
def evaluate(prepared, tmp_path_factory) -> Run:
    """Evaluates under changed keys; returns the run folder."""
    path, assembly = prepared

    def run(*settings: str, stage: int = STAGE, assembly: Assembly = assembly) -> Path:
        folder = tmp_path_factory.mktemp("run")
        config = load_config(path, [f"output_dir={folder}", *settings])
        tracker = Tracker(config.run_dir, config)
        questions = load_records(config, config.val_path, None)
        Evaluator(config, assembly, questions, tracker).run("final", stage, 0)
        tracker.close()
        return config.run_dir

    return run


def thoughts(run: Path, mode: str = "coconut") -> Thoughts:
    return read_thoughts(run / "thoughts" / f"final_{mode}.safetensors")


@pytest.fixture(scope="module")
def untouched(evaluate) -> Path:
    return evaluate("eval_batch_size=3")


def again(prepared, place: int, project=lambda x: x) -> tuple[list[torch.Tensor], list[torch.Tensor], list[list[int]]]:
    """A question's thoughts as they are fed, the whole logits before each, and its steps' tokens, from its own text."""
    path, assembly = prepared
    config: RunConfig = load_config(path)
    example = load_records(config, config.val_path, None)[place]
    model, latent = assembly.backbone.model, assembly.backbone.latent_tokens
    tokens, inputs = assembly.encoder(example, "reasoning")
    ids = torch.tensor([[*tokens.prompt, *latent.block(2 * min(STAGE, len(tokens.steps)))]])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        if inputs:
            features = model.get_image_features(**inputs, return_dict=True).pooler_output
            embeds = embeds.masked_scatter((ids == model.config.image_token_id)[..., None], features)
        fed, logits = [], []
        for column in (ids[0] == latent.latent).nonzero()[:, 0].tolist():
            logits.append(model(inputs_embeds=embeds[:, :column]).logits[0, -1])
            hidden = model.get_decoder()(inputs_embeds=embeds[:, :column]).last_hidden_state[0, -1]
            fed.append(project(hidden))
            embeds[0, column] = fed[-1]
    return fed, logits, tokens.steps


def test_everything_is_what_a_recomputation_gives(prepared, untouched):
    path, assembly = prepared
    found, tokenizer = thoughts(untouched), assembly.backbone.tokenizer
    examples = load_records(load_config(path), load_config(path).val_path, None)
    assert found.questions == tuple(example.id for example in examples)
    positions: dict[int, list[torch.Tensor]] = {}
    for place, example in enumerate(examples):
        fed, logits, steps = again(prepared, place)
        own = found.of(example.id)
        assert [thought.position for thought in own] == [*range(1, len(fed) + 1)] and len(fed) == 2 * len(steps)
        for k, (thought, vector, said) in enumerate(zip(own, fed, logits, strict=True)):
            positions.setdefault(k, []).append(vector)
            assert thought.step == k // 2 + 1  # two thoughts a step
            assert thought.norm == pytest.approx(float(vector.norm()), rel=1e-4)
            cosines = [float(torch.cosine_similarity(vector, other, dim=0)) for other in fed]
            assert thought.cosines == pytest.approx(cosines, abs=1e-4)
            likeliest = said.softmax(-1).sort(descending=True)
            assert [word.token for word in thought.top] == likeliest.indices[:4].tolist()
            assert [word.probability for word in thought.top] == pytest.approx(likeliest.values[:4].tolist(), rel=1e-3)
            assert [word.text for word in thought.top] == [tokenizer.decode([word.token]) for word in thought.top]
            expected = [token for token in steps[k // 2] if any(c.isalnum() for c in tokenizer.decode([token]))]
            assert [word.token for word in thought.gold] == [*dict.fromkeys(expected)] != []
            ranks = [1 + int((said > said[word.token]).sum()) for word in thought.gold]
            assert [word.rank for word in thought.gold] == ranks
            assert [word.text for word in thought.gold] == [tokenizer.decode([word.token]) for word in thought.gold]
    assert len(found.positions) == len(positions)
    for k, position in enumerate(found.positions):
        matrix = torch.stack(positions[k]).double()
        values = np.linalg.svd(matrix.numpy(), compute_uv=False)
        shares = values / values.sum()
        assert (position.position, position.n) == (k + 1, len(matrix))
        assert position.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        pairs = [torch.cosine_similarity(a, b, dim=0) for i, a in enumerate(matrix) for b in matrix[:i]]
        similarity = float(torch.stack(pairs).mean()) if pairs else float("nan")
        assert position.mean_similarity == pytest.approx(similarity, abs=1e-5, nan_ok=True)
    known = sorted(set(tokenizer.get_vocab().values()))
    norms = assembly.backbone.model.get_input_embeddings().weight[known].detach().norm(dim=-1)
    assert found.embedding.mean == pytest.approx(float(norms.mean()), rel=1e-5)
    assert found.embedding.quantiles[0.5] == pytest.approx(float(norms.quantile(0.5)), rel=1e-5)
    assert found.about == {"mode": "coconut", "stage": STAGE, "intervention": None, "c_thought": 2}


def test_a_projected_thought_is_read_as_it_was_before_and_measured_as_it_is_fed(prepared, evaluate):
    """As a recomputation has it; where an intervention feeds something else, the words stay those that were thought."""
    projection = Projection(prepared[1].backbone.model, "mlp", to_embeddings=True, seed=3)
    assembly = with_reasoner(prepared[1], thought_source=Projected(hidden_state, projection))
    run = evaluate("coconut.projection=mlp", "eval_config.interventions=[zero]", assembly=assembly)
    found, zero = thoughts(run), thoughts(run, "coconut.zero")
    for place, question in enumerate(found.questions):
        fed, logits, _ = again(prepared, place, projection)
        for thought, vector, said in zip(found.of(question), fed, logits, strict=True):
            assert thought.norm == pytest.approx(float(vector.norm()), rel=1e-4)
            assert [word.token for word in thought.top] == said.topk(4).indices.tolist()
            assert [word.rank for word in thought.gold] == [1 + int((said > said[w.token]).sum()) for w in thought.gold]
        assert [word.token for word in zero.of(question)[0].top] == logits[0].topk(4).indices.tolist()
    assert not zero.norm.any()


def with_reasoner(assembly: Assembly, **changed) -> Assembly:
    """A copy whose reasoner has other attributes."""
    assembly, reasoner = copy.copy(assembly), copy.copy(assembly.reasoner)
    reasoner._modules = dict(reasoner._modules)  # in which a source of thoughts may be
    for name, value in changed.items():
        reasoner._modules.pop(name, None)
        setattr(reasoner, name, value)
    object.__setattr__(assembly, "reasoner", reasoner)
    return assembly


def same(a: Thoughts, b: Thoughts) -> bool:
    exact = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("first", "step", "gold_ids", "n"))
    near = ("norm", "top_probabilities", "cosines", "effective_rank", "mean_similarity")
    close = all(np.allclose(getattr(a, name), getattr(b, name), rtol=1e-3, atol=1e-5, equal_nan=True) for name in near)
    words = np.array_equal(a.top_ids, b.top_ids) and np.array_equal(a.gold_ranks, b.gold_ranks)
    return exact and close and words and a.words == b.words and a.questions == b.questions


def test_the_same_for_any_size_of_batches_and_answers_are_as_without(evaluate, untouched):
    for settings in (["eval_batch_size=1"], ["eval_batch_size=5"]):
        assert same(thoughts(evaluate(*settings)), thoughts(untouched))
    without = evaluate("eval_batch_size=3", "eval_config.thoughts=false")
    assert not (without / "thoughts").exists()
    samples = [(run / "samples" / "final_coconut.jsonl").read_bytes() for run in (without, untouched)]
    assert samples[0] == samples[1]


def test_under_interventions_what_is_put_in_is_what_is_seen(prepared, evaluate, untouched):
    specs = "[zero, permute, mean_by_step, cut(1), mask, extend(8)]"
    run, before = evaluate(f"eval_config.interventions={specs}"), thoughts(untouched)
    assert same(thoughts(run), before)
    vocabulary = prepared[1].backbone.model.config.get_text_config().vocab_size
    zero = thoughts(run, "coconut.zero")
    assert zero.about["intervention"] == "zero"
    assert not zero.norm.any() and (zero.gold_ranks == vocabulary).all() and len(zero.gold_ranks)
    assert np.isnan(zero.cosines).all() and np.isnan(zero.effective_rank).all() and np.isnan(zero.mean_similarity).all()
    permuted = thoughts(run, "coconut.permute")
    for question in before.questions:
        own, moved = before.of(question), permuted.of(question)
        order = order_of(len(own), draw(0, question, "permute"))
        assert [thought.norm for thought in moved] == pytest.approx([own[k].norm for k in order], rel=1e-4)
        assert [[word.token for word in thought.top] for thought in moved] == [
            [word.token for word in own[k].top] for k in order
        ]
        assert [thought.step for thought in moved] == [thought.step for thought in own]  # of their places
    means = thoughts(run, "coconut.mean_by_step")
    assert means.mean_similarity[0] > before.mean_similarity[0]  # all but one the same questions
    cut = thoughts(run, "coconut.cut-1")
    assert len(cut.norm) == len(cut.questions) and cut.norm == pytest.approx(before.norm[before.first[:-1]], rel=1e-4)
    assert same(thoughts(run, "coconut.mask"), before)
    extended = thoughts(run, "coconut.extend-8")
    for question in before.questions:
        own, more = before.of(question), extended.of(question)
        assert len(more) == 8 and [thought.step for thought in more[len(own) :]] == [None] * (8 - len(own))
        assert all(not thought.gold for thought in more[len(own) :]) and more[0].gold == own[0].gold


def test_a_pause_is_one_vector_and_borrowed_thoughts_are_anothers(prepared, evaluate, untouched):
    def controlled(kind: str) -> Path:
        path, assembly = prepared
        config = load_config(path, [f"coconut.thoughts={kind}"])
        method = evaluation_methods(config, assembly.backbone.latent_tokens)["coconut"]
        latent = assembly.reasoner.latent_token_id if method.passes(1) > 1 else None
        assembly = with_reasoner(assembly, thought_source=method.thought_source(), latent_token_id=latent)
        return evaluate(f"coconut.thoughts={kind}", assembly=assembly)

    pause = thoughts(controlled("pause"))
    latent = prepared[1].backbone.latent_tokens.latent
    embedding = prepared[1].backbone.model.get_input_embeddings().weight[latent].detach()
    assert pause.norm == pytest.approx(np.full(len(pause.norm), float(embedding.norm())), rel=1e-5)
    assert pause.effective_rank == pytest.approx(np.ones(6), abs=1e-5)
    own, borrowed = thoughts(untouched), thoughts(controlled("borrowed"))
    assert np.array_equal(borrowed.first, own.first) and not np.allclose(borrowed.norm, own.norm, rtol=1e-3)


def test_a_stage_without_thoughts_writes_none(evaluate):
    run = evaluate(stage=0)
    assert (run / "samples" / "final_coconut.jsonl").exists() and not (run / "thoughts").exists()


def test_methods_without_thoughts_are_refused(prepared):
    path, assembly = prepared

    def check(*settings: str) -> None:
        config = load_config(path, settings)
        methods = evaluation_methods(config, assembly.backbone.latent_tokens)
        check_lens(config, methods, STAGE, load_records(config, config.val_path, None), assembly.encoder)

    check("eval_config.cot=true")  # coconut has some
    check("method=coconut", "coconut.thoughts=pause")
    for settings in (
        ["eval_config={cot: true, coconut: false}"],
        ["method=no_thoughts"],
        ["eval_config.eval_latent_tokens=0"],
    ):
        with pytest.raises(UserError, match=r"eval_config.thoughts is true but \w+ has none to look into"):
            check(*settings)
    check("eval_config={cot: true, coconut: false, thoughts: false}")
