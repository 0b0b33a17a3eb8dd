"""Whole evaluations, of a model made by hand whose answer is what its thoughts say, and of one that cannot see them."""

import copy
import io
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.example import Example, load_image
from multicoco.errors import UserError
from multicoco.evaluation import asking
from multicoco.evaluation.evaluator import Evaluator, evaluation_methods
from multicoco.evaluation.interventions import Interventions, check_interventions, compare, donor_fields
from multicoco.interventions import parse
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.families import family_of

pytestmark = pytest.mark.usefixtures("one_thread")
N_WORDS, WIDTH, FILLER, ANSWER, START, END, EOS, PAD, LATENT = 8, 32, 20, 22, 23, 24, 25, 26, 27
TOKENS = LatentTokens(START, LATENT, END)
EVERY = [
    *("zero", "mean", "mean_by_step", "noise", "perturb(1)", "first", "permute", "swap(1)", "transplant", "mask"),
    *("cut(0)", "cut(1)", "extend(3)", "other_input", "only(1, mean)", "only(2, transplant)"),
]


def copying_model() -> Qwen2ForCausalLM:
    """Attends evenly to all columns; what it says is the word that most of the thoughts hold, and only without any the
    question's. Width: 8 words as read, 8 words as said, the rest for the other tokens."""
    config = Qwen2Config(
        vocab_size=32, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, tie_word_embeddings=False, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).double().eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    for norm in (model.model.norm, model.model.layers[0].input_layernorm):
        norm.weight.data.fill_(1)
    words = torch.arange(N_WORDS)
    embedding = model.model.embed_tokens.weight.data
    embedding[words, words] = 1
    embedding[torch.arange(20, 28), torch.arange(20, 28)] = 0.1
    attention = model.model.layers[0].self_attn
    attention.v_proj.weight.data[N_WORDS + words, words] = 1
    attention.v_proj.weight.data[N_WORDS + words, N_WORDS + words] = 100
    attention.o_proj.weight.data = torch.eye(WIDTH, dtype=torch.float64)
    model.lm_head.weight.data[words, N_WORDS + words] = 1
    model.lm_head.weight.data[EOS, words] = 1000  # after a word comes the end
    return model


class Blind(LatentReasoner):
    """What follows the thoughts never sees them."""

    def run_passes(self, *args, n_passes, intervened, **inputs):
        n_passes += not intervened.hides
        return super().run_passes(*args, n_passes=n_passes, intervened=replace(intervened, hides=True), **inputs)


class Prompt:
    def __init__(self, encoder):
        self.encoder, self.tokenizer, self.announcement = encoder, encoder.tokenizer, [ANSWER]

    def __call__(self, example, asked, image_tokens=()):
        return self.encoder(example, asked)[0]


class Encoder:
    """The question's word, then one token that says nothing."""

    tokenizer = SimpleNamespace(
        pad_token_id=PAD,
        encode=lambda text, **_: [ANSWER],
        decode=lambda ids, **_: " ".join(f"w{i}" for i in ids if i < N_WORDS),
    )

    @property
    def prompt(self):
        return Prompt(self)

    def __call__(self, example, asked):
        answer = [] if example.answer is None else [ANSWER, int(example.answer[1:]), EOS]
        return ExampleTokens([int(example.question[1:]), FILLER], [[FILLER]] * len(example.steps), answer), {}


class SeeingEncoder(Encoder):
    """The word that the picture's colour stands for (none if it is grey), and what the question says does not count."""

    def __call__(self, example, asked):
        red, green, _ = load_image(example.images[0]).getpixel((0, 0))
        seen = FILLER if green else red
        _, inputs = super().__call__(example, asked)
        answer = [] if example.answer is None else [ANSWER, int(example.answer[1:]), EOS]
        return ExampleTokens([seen, FILLER], [[FILLER]] * len(example.steps), answer), inputs


def picture(word: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (word, 0, 0)).save(file, "PNG")
    return file.getvalue()


def example(i: int, steps: int = 2, **fields) -> Example:
    word = f"w{i % N_WORDS}"
    choices = tuple(f"w{(i + j) % N_WORDS}" for j in range(3))
    known = {"choices": choices, "steps": ("s",) * steps, "answer": word, "answer_index": 0}
    return Example(**({"id": f"q{i}", "question": word, "images": ()} | known | fields))


EXAMPLES = [example(i, steps=2 - (i % 4 == 3)) for i in range(11)]


def config(*interventions: str, **keys) -> RunConfig:
    evaluated = {"coconut": True, "interventions": list(interventions)} | keys.pop("eval_config", {})
    return RunConfig(
        **{
            "name": "run", "model_id": "model", "mode": "eval_only", "val_path": "v", "answer_format": "text",
            "coconut": {"enabled": True, "max_latent_stage": 2}, "eval_config": evaluated, "num_workers": 0,
            "eval_batch_size": 4, "generation": {"max_new_tokens": 3},
        } | keys
    )  # fmt: skip


class Tracker:
    """Keeps what it is told."""

    def __init__(self):
        self.summaries, self.samples, self.predictions = {}, {}, {}

    def log_evaluation(self, name, mode, summary, samples, step, pictures):
        self.summaries[mode], self.samples[mode] = summary, samples

    def write_predictions(self, name, mode, data_set, predictions):
        self.predictions[mode, data_set] = predictions

    def progress(self, total, description):
        return tqdm(disable=True)


def evaluate(config, reasoner=LatentReasoner, examples=EXAMPLES, model=None, encoder=None, stage=2) -> Tracker:
    model = model or copying_model()
    backbone = SimpleNamespace(
        tokenizer=Encoder.tokenizer, family=family_of(model.config), latent_tokens=TOKENS, end_token_ids=[EOS],
        ignored_generation={},
    )  # fmt: skip
    assembly = SimpleNamespace(
        backbone=backbone, reasoner=reasoner(model, LATENT), encoder=encoder or Encoder(), features=None
    )
    tracker = Tracker()
    Evaluator(config, assembly, examples, tracker).run("final", stage, 0)
    return tracker


@pytest.fixture(scope="module")
def copied(one_thread) -> Tracker:
    return evaluate(config(*EVERY))


def test_the_answer_is_in_the_thoughts(copied):
    assert copied.summaries["coconut"]["accuracy"] == 1
    assert copied.summaries["coconut"]["likelihood_accuracy"] == 1


def test_transplanted_thoughts_carry_the_donors_answer_along(copied):
    summary, samples = copied.summaries["coconut.transplant"], copied.samples["coconut.transplant"]
    possible = [sample for sample in samples if sample["says_donor_answer"] is not None]
    assert summary["n_donor_answer_possible"] == len(possible) > 3 and summary["n_donor_answer_untouched"] == 0
    assert summary["n_to_donor_answer"] == len(possible)  # all of them flip to it
    assert all(sample["choices"][sample["extracted"]] == sample["donor_answer"] for sample in possible)
    assert summary["accuracy"] == 0 and summary["difference"] == -1
    assert summary["n_right_to_wrong"] == 11 and summary["n_wrong_to_right"] == 0
    by_id = {e.id: e for e in EXAMPLES}
    for sample in samples:
        donor, own = by_id[sample["donor"]], by_id[sample["id"]]
        assert len(donor.steps) == len(own.steps) and donor.answer != own.answer


def test_what_was_the_donors_answer_before_is_no_flip_to_it():
    """Two that say the donor's answer as trained, of which the thoughts of the donor change one; and one that flips."""
    asked, donor = example(0), example(1)
    said = [(1, 1), (0, 1), (1, 0), (0, 0)]  # choices, with the donor's thoughts and without; 1 is the donor's answer
    samples = [
        {"extracted": now, "correct": now == 0, "gold_logprob": None, **donor_fields(asked, donor, now, before)}
        for now, before in said
    ]
    found = compare(samples, [{"extracted": b, "correct": b == 0, "gold_logprob": None} for _, b in said])
    counts = ("n_donor_answer_untouched", "n_donor_answer_possible", "n_to_donor_answer")
    assert [found[key] for key in counts] == [2, 2, 1]
    unheard = donor_fields(asked, example(5), None, 0)  # what is no choice cannot be said
    assert (unheard["says_donor_answer"], unheard["untouched_says_donor_answer"]) == (None, None)


def test_a_stage_is_asked_only_under_what_its_thoughts_allow():
    """With one thought there is no second, none to leave out and no other order; a difference of 0 would be no news."""
    specs = ["zero", "only(2, mean)", "swap(1)", "cut(1)", "cut(0)", "permute", "first", "extend(3)"]
    early = evaluate(config(*specs), stage=1)
    assert [*early.summaries] == ["coconut", "coconut.zero", "coconut.cut-0", "coconut.extend-3"]
    assert [*evaluate(config(*specs[:3]), stage=0).summaries] == ["coconut"]
    assert len(evaluate(config(*specs), stage=2).summaries) == 1 + len(specs)


def test_every_intervention_has_its_own_record(copied):
    assert len(copied.summaries) == 1 + len(EVERY)
    assert {summary.get("intervention") for summary in copied.summaries.values()} == {None, *EVERY}
    untouched = copied.samples["coconut"]
    for mode, summary in copied.summaries.items():
        if mode == "coconut":
            continue
        pairs = list(zip(copied.samples[mode], untouched, strict=True))
        assert [a["id"] for a, _ in pairs] == [e.id for e in EXAMPLES] == [b["id"] for _, b in pairs]
        assert summary["difference"] == pytest.approx(sum(a["correct"] - b["correct"] for a, b in pairs) / 11)
        change = sum(a["gold_logprob"] - b["gold_logprob"] for a, b in pairs) / 11
        assert summary["gold_logprob_difference"] == pytest.approx(change)
    latent_passes = {mode: [s["latent_passes"] for s in samples] for mode, samples in copied.samples.items()}
    assert latent_passes["coconut"] == [len(e.steps) for e in EXAMPLES] and set(latent_passes["coconut.cut-0"]) == {0}
    assert set(latent_passes["coconut.cut-1"]) == {1} and set(latent_passes["coconut.extend-3"]) == {3}


def test_means_are_of_the_other_questions(copied):
    """Nothing of the question is left in them: the thoughts do not say its word more than they would by chance."""
    for mode in ("coconut.mean", "coconut.mean_by_step"):
        assert copied.summaries[mode]["accuracy"] < 1
        assert copied.summaries[mode]["gold_logprob_difference"] < 0


def test_thoughts_about_another_picture_and_another_picture_after_the_thoughts():
    """What the model says is what its thoughts hold: the other picture's word if that is what it thought about, its own
    if the pictures are changed after the thoughts, and nothing sure if it thought about a grey one."""
    examples = [example(i, images=(picture(i % N_WORDS),)) for i in range(5)]
    specs = ("other_input", "other_input(reverse)", "other_input(blank)")
    found = evaluate(config(*specs, eval_config={"likelihoods": True}), examples=examples, encoder=SeeingEncoder())
    samples = {summary.get("intervention"): found.samples[mode] for mode, summary in found.summaries.items()}
    plan = Interventions(config(*specs), evaluation_methods(config(*specs), TOKENS)["coconut"], 2, examples, Encoder())
    assert all(sample["correct"] for sample in samples[None])
    for other, thought in zip(plan.other_inputs, samples["other_input"], strict=True):
        assert thought["generated"].split()[0] == examples[other].answer
    assert all(sample["correct"] for sample in samples["other_input(reverse)"])
    grey = samples["other_input(blank)"]
    assert all(a["gold_logprob"] < b["gold_logprob"] for a, b in zip(grey, samples[None], strict=True))


def test_a_model_that_ignores_its_thoughts_is_told_by_a_difference_of_exactly_0():
    blind = evaluate(config(*EVERY), Blind)
    assert blind.summaries["coconut"]["accuracy"] == 1  # it still sees the question
    for spec in EVERY:
        (summary,) = [s for s in blind.summaries.values() if s.get("intervention") == spec]
        assert summary["difference"] == 0 and summary["n_changed"] == 0
        if not spec.startswith(("cut", "extend")):  # the columns are others, and so are the last digits
            assert summary["gold_logprob_difference"] == 0


def test_what_changes_nothing_is_bit_for_bit_the_same(monkeypatch):
    monkeypatch.setattr(Interventions, "donors", list(range(11)))  # each its own
    monkeypatch.setattr("multicoco.evaluation.interventions.order_of", lambda n, bits: list(range(n)))
    nothing = ["transplant", "permute", "perturb(0)", "only(2, transplant)"]
    found = evaluate(config(*nothing))
    for mode, samples in found.samples.items():
        same = [{k: v for k, v in sample.items() if "donor" not in k} for sample in samples]
        assert same == found.samples["coconut"], mode


def known(samples: dict) -> dict:
    """Samples with their log-probabilities to the digits that rounding leaves."""

    def rounded(value):
        if isinstance(value, float):
            return round(value, 5)
        return [rounded(v) for v in value] if isinstance(value, list) else value

    return {mode: [{k: rounded(v) for k, v in s.items()} for s in of_mode] for mode, of_mode in samples.items()}


DONATED = ["mean", "mean_by_step", "noise", "permute", "transplant", "mask", "other_input", "cut(1)"]


def expected(copied: Tracker) -> dict:
    names = {"coconut", *(f"coconut.{parse(spec).file_name}" for spec in DONATED)}
    return known({mode: samples for mode, samples in copied.samples.items() if mode in names})


def test_the_same_for_any_size_of_batches(copied):
    assert known(evaluate(config(*DONATED, eval_batch_size=3)).samples) == expected(copied)


def test_the_same_on_two_ranks(copied, monkeypatch):
    """Two threads, each with a model of its own, that meet where ranks do."""
    local, meeting, values = threading.local(), threading.Barrier(2, timeout=60), [None, None]

    def gather(value):
        values[local.rank] = value
        meeting.wait()
        both = list(values)
        meeting.wait()
        return both

    monkeypatch.setattr(asking, "gather", gather)
    monkeypatch.setattr(asking, "rank", lambda: local.rank)
    monkeypatch.setattr(asking, "world_size", lambda: 2)
    found = [None, None]

    def run(rank):
        local.rank = rank
        found[rank] = evaluate(config(*DONATED, eval_batch_size=2))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert known(found[0].samples) == known(found[1].samples) == expected(copied)


def test_likelihoods_are_what_the_model_gives_the_whole_text():
    model = copying_model()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    found = evaluate(
        config(eval_config={"vanilla": True, "coconut": False, "likelihoods": True}, coconut={}), model=model
    )
    for sample, question in zip(found.samples["vanilla"], EXAMPLES, strict=True):
        for choice, measured in zip(question.choices, sample["choice_logprobs"], strict=True):
            # the double's prompt does not end with the answer's prefix, so it is measured too
            ids = torch.tensor([[int(question.question[1:]), FILLER, ANSWER, int(choice[1:]), EOS]])
            log_probs = copy.deepcopy(model)(ids).logits[0].log_softmax(-1)
            whole = sum(log_probs[at, ids[0, at + 1]] for at in (1, 2, 3))
            assert measured == pytest.approx(whole.item(), rel=1e-5)
        assert sample["gold_logprob"] == sample["choice_logprobs"][0]


def test_the_likeliest_choice_is_an_answer_without_a_text():
    found = evaluate(config(eval_config={"answer_by": "likelihood"}))
    assert found.summaries["coconut"]["accuracy"] == 1
    assert all(s["generated"] == "" and s["new_tokens"] == 0 and s["extracted"] == 0 for s in found.samples["coconut"])


def test_questions_without_known_answers_still_have_likely_choices():
    unknown = [example(i, answer=None, answer_index=None) for i in range(3)]
    found = evaluate(config("zero"), examples=unknown)
    assert found.summaries["coconut.zero"]["difference"] is None
    assert all(s["gold_logprob"] is None and len(s["choice_logprobs"]) == 3 for s in found.samples["coconut"])


def refused(config, examples=EXAMPLES) -> str:
    with pytest.raises(UserError) as caught:
        check_interventions(config, evaluation_methods(config, TOKENS), 2, examples, Encoder())
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("only(3, mean)", "only(3, mean) needs 3 thoughts, and no question has more than 2"),
        ("swap(2)", "swap(2) needs 3 thoughts"),
        ("cut(2)", "cut(2) needs 3 thoughts"),
        ("only(1, swap(2))", "only(1, swap(2)) needs 3 thoughts"),
        ("only(1, first)", "only(1, first) changes nothing: first does not concern thought 1"),
        ("extend(2)", "extend(2) adds none to 2 thoughts"),
        ("other_input(blank)", "is about images, and question 'q0' has none"),
        ("other_input(reverse)", "transplant counts what it would tell"),
    ],
)
def test_positions_and_inputs_that_are_not_there_are_refused(spec, said):
    assert said in refused(config(spec))


def test_too_few_donors_are_refused_by_the_question_that_has_none():
    examples = [example(0), example(1), example(2, steps=1)]
    assert "transplant finds no donor for question 'q2'" in refused(config("transplant"), examples)
    same_answer = [example(0), replace(example(0), id="q8")]
    assert "transplant finds no donor for question 'q0'" in refused(config("transplant"), same_answer)
    assert "mean needs two questions" in refused(config("mean"), examples[:1])
    assert "only(2, mean_by_step) needs two questions" in refused(config("only(2, mean_by_step)"), examples[1:])
    assert "other_input needs, for question 'q0'" in refused(config("other_input"), examples[:1])
    one_picture = [example(i, images=(picture(0),)) for i in range(4)]
    for spec in ("other_input", "other_input(reverse)"):
        assert f"{spec} needs, for question 'q0', another one with other images" in refused(config(spec), one_picture)


def test_methods_without_thoughts_and_questions_without_choices_are_refused():
    assert "zero needs thoughts that a model thinks itself, and cot has none" in refused(
        config("zero", eval_config={"cot": True, "coconut": False})
    )
    for thoughts in ("pause", "noise", "borrowed"):
        keys = {"enabled": True, "max_latent_stage": 2, "thoughts": thoughts}
        assert "coconut has none" in refused(config("zero", coconut=keys))
    no_thoughts = config("zero", eval_config={"eval_latent_tokens": 0})
    assert "zero has no thoughts to change" in refused(no_thoughts)
    open_question = [*EXAMPLES, example(11, choices=(), answer_index=None)]
    assert "question 'q11' has no choices" in refused(config(eval_config={"answer_by": "likelihood"}), open_question)


def test_more_thoughts_than_trained_are_said_once(capsys):
    found = evaluate(config("zero", eval_config={"eval_latent_tokens": 5}))
    assert {sample["latent_passes"] for sample in found.samples["coconut"]} == {5}
    assert capsys.readouterr().out.count("eval_config asks for 5 thoughts, coconut is trained with at most 2") == 1


@pytest.mark.parametrize(("key", "says"), [("think_then_write", True), ("eval_latent_tokens", False)])
def test_thoughts_that_there_are_not_are_not_asked_for(key, says, capsys):
    nothing = {"enabled": True, "max_latent_stage": 2, "c_thought": 0}
    asked = config(coconut=nothing, eval_config={key: 2})
    if says:
        with pytest.raises(UserError, match="think_then_write is 2 but coconut puts no thoughts in the place of steps"):
            evaluation_methods(asked, TOKENS)
    else:
        assert {sample["latent_tokens"] for sample in evaluate(asked).samples["coconut"]} == {0}
        assert "eval_config asks for" not in capsys.readouterr().out
    evaluation_methods(config(coconut=nothing, eval_config={key: 0}), TOKENS)


def test_a_run_makes_thoughts_in_one_way():
    both = {"coconut": False, "methods": ["c_mtp", "vanilla", "no_thoughts"]}
    assert [*evaluation_methods(config(eval_config=both), TOKENS)] == ["c_mtp", "vanilla", "no_thoughts"]
    with pytest.raises(UserError, match=r"methods has c_mtp but .*, that of coconut: evaluate by c_mtp in another run"):
        evaluation_methods(config(eval_config=both | {"coconut": True}), TOKENS)
    with pytest.raises(UserError, match=r"methods has c_mtp but .* no_thoughts"):  # whose model has no heads for words
        evaluation_methods(config(method="no_thoughts", eval_config=both), TOKENS)


def test_a_data_set_with_an_evaluation_of_its_own_gets_its_scores_and_its_file():
    openly = {"choices": (), "answer_index": None}
    examples = [
        replace(EXAMPLES[0], metric="aokvqa"),
        replace(EXAMPLES[1], metric="aokvqa", answer="w2", answer_index=1),
        replace(EXAMPLES[2], metric="aokvqa", direct_answers=("w2", "w2", "x", "W2"), **openly),
        replace(EXAMPLES[4], metric="aokvqa", direct_answers=("w4", "w4", "w4"), **openly),
        EXAMPLES[5],
    ]
    found = evaluate(config("mean"), examples=examples)
    summary = found.summaries["coconut"]
    assert (summary["aokvqa/multiple_choice"], summary["aokvqa/multiple_choice_n"]) == (0.5, 2)
    assert summary["aokvqa/direct_answer"] == pytest.approx((2 / 3 + 1) / 2)
    assert [sample["said"] for sample in found.samples["coconut"]] == ["w0", "w1", "w2", "w4", "w5"]
    assert [sample["correct"] for sample in found.samples["coconut"]] == [True, False, True, True, True]  # W2 too
    assert found.predictions["coconut", "aokvqa"] == {
        "q0": {"multiple_choice": "w0"},
        "q1": {"multiple_choice": "w1"},
        "q2": {"direct_answer": "w2"},
        "q4": {"direct_answer": "w4"},
    }
    assert "aokvqa/multiple_choice" in found.summaries["coconut.mean"]


def test_a_set_without_one_has_none():
    found = evaluate(config(), examples=EXAMPLES[:2])
    assert not any("/" in key for key in found.summaries["coconut"]) and not found.predictions


def test_questions_are_asked_with_what_the_config_says_and_judged_as_they_are(monkeypatch):
    examples = [replace(example, images=(bytes([i]),)) for i, example in enumerate(EXAMPLES[:4])]
    seen, encode = [], Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, e, asked: seen.append(e.images) or encode(self, e, asked))
    found = evaluate(config(eval_config={"inputs": "question_only"}), examples=examples)
    assert seen and not any(seen)
    assert found.summaries["coconut"]["inputs"] == "question_only"
    assert [sample["correct"] for sample in found.samples["coconut"]] == [True] * 4
    assert "inputs" not in evaluate(config(), examples=examples).summaries["coconut"] and any(seen)


def hasty_model() -> Qwen2ForCausalLM:
    """Says what the copying one does, but right after its thoughts, or its question, first that an answer comes."""
    model = copying_model()
    model.lm_head.weight.data[ANSWER, [END, FILLER]] = 1e6
    return model


@pytest.mark.parametrize("thoughts", [0, 1, 2])
def test_reasoning_is_written_after_as_many_thoughts_as_asked_for(thoughts):
    specs, keys = ["zero"] * (thoughts > 0), {"generation": {"max_new_tokens": 4}}
    free, forced = (
        evaluate(config(*specs, eval_config={"cot": True, **asked}, **keys), model=hasty_model())
        for asked in ({}, {"think_then_write": thoughts})
    )
    assert {s["new_tokens"] for s in free.samples["coconut"]} == {3}  # the announcement, a word, the end
    assert {s["new_tokens"] for s in forced.samples["coconut"]} == {2}
    assert {s["latent_tokens"] for s in forced.samples["coconut"]} == {thoughts}
    assert forced.samples["cot"] == free.samples["cot"]  # which has none
    assert forced.summaries["coconut"]["think_then_write"] == thoughts
    assert "think_then_write" not in free.summaries["coconut"]
    assert forced.summaries["coconut"]["accuracy"] == 1
