"""The adapter against lmms-eval's interface and, where it is installed, in lmms-eval itself (docs/integrations.md)."""

import importlib
import inspect
import json
import re
import sys
from importlib.metadata import EntryPoint

import doubles
import pytest
from homes import REPO
from PIL import Image

from multicoco.errors import UserError

ADAPTER = "multicoco.integrations.lmms_eval"
PICTURE = Image.new("RGB", (84, 84), "red")


@pytest.fixture
def adapter(monkeypatch):
    doubles.stand_in(monkeypatch, doubles.LMMS_EVAL, ADAPTER)
    yield importlib.import_module(ADAPTER)
    sys.modules.pop(ADAPTER, None)


def user(*content: dict) -> list[dict]:
    return [{"role": "user", "content": [*content]}]


def text(said: str) -> dict:
    return {"type": "text", "text": said}


def requests(docs: list, messages_of=lambda doc: doc) -> list[doubles.Instance]:
    settings = {"max_new_tokens": 16, "until": ["\n\n"]}
    arguments = [("context", messages_of, settings, place, "task", "test") for place in range(len(docs))]
    return [doubles.Instance("generate_until", of_one, 0) for of_one in arguments]


def test_answers_come_in_the_order_of_the_requests_with_their_tokens(adapter, fake):
    arguments = "pretrained=runs/run,mode=cot"
    model = adapter.MultiCoCo.create_from_arg_string(arguments, {"batch_size": "1", "max_batch_size": None})
    docs = [
        user({"type": "image", "url": PICTURE}, text("Which?\nA. red\nB. blue")),
        [{"role": "system", "content": "Be brief."}, *user(text("What?"))],
    ]
    model.task_dict = {"task": {"test": docs}}
    assert not model.is_simple
    results = model.generate_until(requests(docs))
    assert [(result.text, result.token_counts.output_tokens) for result in results] == [("B", 7), ("B", 7)]
    assert fake.asked == [
        ([PICTURE], "<image>Which?\nA. red\nB. blue", "cot", None),
        (None, "Be brief.\nWhat?", "cot", None),
    ]
    assert [seen[0::2] for seen in model.cache_hook.seen] == [("generate_until", "B")] * 2


@pytest.mark.parametrize(
    ("doc", "said"),
    [
        (user({"type": "video", "url": "film.mp4"}), "shows a video"),
        (
            [*user(text("2 + 2?")), {"role": "assistant", "content": [text("4")]}, *user(text("3 + 3?"))],
            "num_fewshot 0",
        ),
    ],
)
def test_what_it_does_not_see_is_said(adapter, fake, doc, said):
    model = adapter.MultiCoCo("runs/run")
    model.task_dict = {"task": {"test": [doc]}}
    with pytest.raises(UserError, match=said):
        model.generate_until(requests([doc]))


def test_other_kinds_of_tasks_are_refused(adapter, fake):
    model = adapter.MultiCoCo("runs/run", max_new_tokens=99, latents=2)
    assert fake.limit == 99 and model.checkpoint.latents == 2
    for kind, said in (("loglikelihood", "likelihoods"), ("generate_until_multi_round", "several turns")):
        with pytest.raises(UserError, match=said):
            getattr(model, kind)([])


def test_the_packages_entry_point_names_the_model(adapter):
    [value] = re.findall(r'"lmms_eval.models": \["multicoco = (.*?)"\]', (REPO / "setup.py").read_text())
    manifest = EntryPoint("multicoco", value, "lmms_eval.models").load()()
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert manifest.model_id == "multicoco" and getattr(importlib.import_module(module), name) is adapter.MultiCoCo


def parameters(function) -> list[str]:
    return [*inspect.signature(function).parameters]


def test_the_doubles_are_like_the_real_ones():
    real = {name: pytest.importorskip(name) for name in doubles.LMMS_EVAL}
    model, instance, registry = real.values()
    for method in doubles.lmms.__abstractmethods__ | {"create_from_arg_string"}:
        assert parameters(getattr(doubles.lmms, method)) == parameters(getattr(model.lmms, method))
    assert doubles.lmms.__abstractmethods__ == model.lmms.__abstractmethods__
    assert parameters(doubles.CacheHook.add_partial) == parameters(model.CacheHook.add_partial)
    for double, found in (
        (doubles.Instance, instance.Instance),
        (doubles.TokenCounts, instance.TokenCounts),
        (doubles.GenerationResult, instance.GenerationResult),
        (doubles.ModelManifest, registry.ModelManifest),
    ):
        fields = parameters(double)
        assert fields == parameters(found)[: len(fields)]


def blink(picture: Image.Image, n: int) -> dict:
    prompt = "How many tiles?\nSelect from the following choices.\n(A) 0\n(B) 9"
    images = {f"image_{i}": picture for i in range(1, 5)}
    about = {"idx": f"val_{n}", "sub_task": "Counting", "question": "How many tiles?", "explanation": ""}
    return {**about, **images, "choices": ["0", "9"], "answer": "(B)", "prompt": prompt}


def mmmu(picture: Image.Image, n: int) -> dict:
    about = {
        "id": f"validation_Art_{n}",
        "subfield": "Drawing",
        "img_type": "['Photographs']",
        "topic_difficulty": "Easy",
    }
    question = {"question": "See <image 1> and <image 2>. Which?", "options": "['red', 'blue']", "answer": "B"}
    images = {f"image_{i}": picture if i < 3 else None for i in range(1, 8)}
    return {**about, **question, **images, "explanation": "", "question_type": "multiple-choice"}


def mmstar(picture: Image.Image, n: int) -> dict:
    about = {"index": n, "category": "math", "l2_category": "geometry", "meta_info": {"source": "x"}}
    return {**about, "question": "Which?\nOptions: A: red, B: blue, C: green, D: pink", "image": picture, "answer": "B"}


def scienceqa(picture: Image.Image, n: int) -> dict:
    return {"image": picture, "question": "Which?", "choices": ["red", "blue"], "answer": 1, "hint": "", "id": n}


def vstar(picture: Image.Image, n: int) -> dict:
    asked = "What is the colour of the tile?\n(A) red\n(B) blue\nAnswer with the option's letter directly."
    about = {"question_id": n, "category": "direct_attributes", "label": "B"}
    return {**about, "image": picture, "text": asked}


SETS = {  # a record, the split, the score and what it is when all is right
    "blink/blink_counting": (blink, "val", "blink_acc", 1),
    "mmmu/mmmu_val": (mmmu, "validation", "mmmu_acc", 1),
    "mmstar/mmstar": (mmstar, "val", "average", 1),
    "scienceqa/scienceqa": (scienceqa, "test", "exact_match", 1),
    "vstar_bench/vstar_bench": (vstar, "test", "vstar_overall_acc", 100),
}


@pytest.fixture
def evaluate(tmp_path):
    """Evaluates on two records of a set, by lmms-eval itself and its own rules."""
    tasks = pytest.importorskip("lmms_eval.tasks")
    evaluator = pytest.importorskip("lmms_eval.evaluator")
    datasets = pytest.importorskip("datasets")
    sys.modules.pop(ADAPTER, None)

    def run(name: str, model_args: str) -> dict:
        record, split, *_ = SETS[name]
        records = [record(PICTURE, n) for n in range(2)]
        columns = {key: [one[key] for one in records] for key in records[0]}
        table = datasets.Dataset.from_dict(columns)
        for key in [key for key in columns if key.startswith("image")]:
            table = table.cast_column(key, datasets.Image())
        table.to_parquet(tmp_path / "set.parquet")
        (tmp_path / "tasks").mkdir(exist_ok=True)
        original = f"{tasks.__path__[0]}/{name}.yaml"
        files = json.dumps({split: str(tmp_path / "set.parquet")})
        (tmp_path / "tasks" / "local.yaml").write_text(
            f"include: {original}\ntask: local\ndataset_path: parquet\ndataset_name: null\ntag: []\n"
            f"dataset_kwargs: {{data_files: {files}}}\n"
        )
        manager = tasks.TaskManager("ERROR", include_path=str(tmp_path / "tasks"), include_defaults=False)
        found = evaluator.simple_evaluate(
            "multicoco", model_args=model_args, tasks=["local"], task_manager=manager, batch_size=1, device="cpu"
        )
        return found

    return run


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("writes", "is_right"), [("B", True), ("blue", True), ("A", False)])
def test_lmms_eval_scores_what_was_answered(evaluate, fake, name, writes, is_right):
    fake.writes = "9" if (writes, name) == ("blue", "blink/blink_counting") else writes
    found = evaluate(name, "pretrained=runs/run,mode=cot")
    scored = {key.partition(",")[0]: value for key, value in found["results"]["local"].items()}
    _, _, score, best = SETS[name]
    if (writes, name) == ("blue", "mmstar/mmstar"):  # whose choices are not in lines of their own
        is_right = False
    assert scored[score] == best * is_right
    assert len(fake.asked) == 2 and all(images and mode == "cot" for images, _, mode, _ in fake.asked)


@pytest.mark.parametrize("mode", ["vanilla", "cot", "coconut"])
def test_lmms_eval_asks_a_checkpoint_in_each_mode(evaluate, trained_home, one_thread, mode):
    found = evaluate("mmstar/mmstar", f"pretrained={trained_home}/runs/run,mode={mode},max_new_tokens=5")
    samples = found["samples"]["local"]
    assert len(samples) == 2 and all(isinstance(sample["filtered_resps"][0], str) for sample in samples)
