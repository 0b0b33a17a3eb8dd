"""The adapter against VLMEvalKit's interface and, where that is installed, in it itself (docs/integrations.md)."""

import base64
import importlib
import inspect
import io
import sys
from hashlib import md5
from pathlib import Path

import doubles
import pytest
from PIL import Image

from multicoco.errors import UserError

ADAPTER = "multicoco.integrations.vlmevalkit"


@pytest.fixture
def adapter(monkeypatch):
    doubles.stand_in(monkeypatch, doubles.VLMEVALKIT, ADAPTER)
    yield importlib.import_module(ADAPTER)
    sys.modules.pop(ADAPTER, None)


def test_a_message_is_answered_with_its_images_in_their_places(adapter, fake, tmp_path):
    model = adapter.MultiCoCo("runs/run", "coconut", latents=3)
    message = [
        {"type": "image", "value": "1.png"},
        {"type": "text", "value": "Which is like "},
        {"type": "image", "value": "2.png"},
        {
            "type": "text",
            "value": "?\nOptions:\nA. red\nB. blue\nPlease select the correct answer from the options above. \n",
        },
    ]
    fake.writes = "blue"
    assert model.INTERLEAVE and model.generate(message, dataset="BLINK") == "B"
    [(images, question, mode, latents)] = fake.asked
    assert (images, mode, latents) == (["1.png", "2.png"], "coconut", 3)
    assert question.startswith("<image>Which is like <image>?\nOptions:")
    with pytest.raises(UserError, match="MMBench_Video shows a video"):
        model.generate([{"type": "video", "value": "film.mp4"}], dataset="MMBench_Video")


def test_modes_become_models(adapter, fake):
    names = adapter.register("runs/run", ["vanilla", "cot", "coconut"], max_new_tokens=50)
    assert names == ["run-vanilla", "run-cot", "run-coconut"]
    vlmeval = sys.modules["vlmeval"]
    assert vlmeval.vlm.MultiCoCo is adapter.MultiCoCo  # for JSON configs
    for name, mode in zip(names, ("vanilla", "cot", "coconut"), strict=True):
        model = vlmeval.config.supported_VLM[name]()
        assert isinstance(model, sys.modules["vlmeval.vlm.base"].BaseModel) and model.checkpoint.mode == mode
    assert fake.limit == 50


def test_names_tell_checkpoints_and_numbers_of_thoughts_apart(adapter, fake):
    """VLMEvalKit keeps results by the names."""
    names = adapter.register("runs/run/checkpoints/epoch_0003", ["cot", "coconut"], latents=2)
    assert names == ["run-epoch_0003-cot", "run-epoch_0003-coconut-2_latents"]
    known = sys.modules["vlmeval"].config.supported_VLM
    assert [known[name]().checkpoint.latents for name in names] == [None, 2]
    with pytest.raises(UserError, match="'icott' is none of the methods, did you mean icot"):
        adapter.register("runs/run", ["icott"])


def test_what_models_of_some_names_are_given_besides_is_taken(adapter, fake):
    [name] = adapter.register("models/Qwen2.5-VL-7B", ["cot"])
    assert sys.modules["vlmeval"].config.supported_VLM[name](use_vllm=False).checkpoint.mode == "cot"
    with pytest.raises(UserError, match="vLLM does not run thoughts"):
        sys.modules["vlmeval"].config.supported_VLM[name](use_vllm=True)


def test_the_command_starts_their_run_with_the_models_in_it(adapter, fake, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run.py"
    run.write_text(
        "import sys\nfrom vlmeval.config import supported_VLM\nassert __name__ == '__main__'\nprint(sys.argv[1:])\n"
        "print(supported_VLM[sys.argv[-1]]().generate([{'type': 'text', 'value': 'Which?'}]))\n"
    )
    options = ["--checkpoint", "runs/run", "--modes", "cot", "coconut", "--data", "MMStar", "--judge", "exact_matching"]
    monkeypatch.setattr(sys, "argv", ["vlmevalkit", str(run), *options])
    adapter.main()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        str(["--data", "MMStar", "--judge", "exact_matching", "--model", "run-cot", "run-coconut"]),
        "B",
    ]


def test_the_double_is_like_the_real_one():
    base = pytest.importorskip("vlmeval.vlm.base")
    for method in ("__init__", "use_custom_prompt", "set_dump_image", "generate_inner", "generate"):
        own, real = (inspect.signature(getattr(of.BaseModel, method)) for of in (doubles, base))
        assert [*own.parameters] == [*real.parameters]
    assert doubles.BaseModel.INTERLEAVE == base.BaseModel.INTERLEAVE


SETS = ("BLINK", "MMMU_DEV_VAL", "MMStar", "ScienceQA_VAL", "VStarBench")


def table(name: str) -> str:
    """Two records of a set in the columns of its published table."""
    file = io.BytesIO()
    Image.new("RGB", (84, 84), "red").save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    several = name in ("BLINK", "MMMU_DEV_VAL")
    question = "See <image 1> and <image 2>. Which?" if name == "MMMU_DEV_VAL" else "Which is it?"
    columns = {"image": str([picture] * 2) if several else picture, "question": question, "A": "red", "B": "blue"}
    about = {"answer": "B", "category": "one", "l2_category": "two", "split": "validation"}
    lines = [{"index": str(place), **columns, **about} for place in range(2)]
    return "\n".join("\t".join(line) for line in ([*lines[0]], *(line.values() for line in lines))) + "\n"


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Evaluates on two records of each set by VLMEvalKit's own run.py and rules."""
    image_mcq = pytest.importorskip("vlmeval.dataset.image_mcq")
    run = Path(sys.modules["vlmeval"].__file__).parents[1] / "run.py"
    monkeypatch.setenv("LMUData", str(tmp_path))
    for name in SETS:
        (tmp_path / f"{name}.tsv").write_text(table(name))
        digest = md5((tmp_path / f"{name}.tsv").read_bytes()).hexdigest()
        for of in (image_mcq.ImageMCQDataset, image_mcq.MMMUDataset):
            if name in of.DATASET_MD5:
                monkeypatch.setitem(of.DATASET_MD5, name, digest)
    sys.modules.pop(ADAPTER, None)
    adapter = importlib.import_module(ADAPTER)

    def scores(checkpoint: Path | str, *modes: str) -> dict[str, dict[str, float]]:
        """By model and set."""
        options = ["--checkpoint", str(checkpoint), "--modes", *modes, "--max-new-tokens", "5", "--data", *SETS]
        options += ["--judge", "exact_matching", "--work-dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["vlmevalkit", str(run), *options])
        adapter.main()
        found: dict[str, dict[str, float]] = {}
        for path in (tmp_path / "out").rglob("*_acc.csv"):
            model, _, rest = path.name.partition("_")
            names, values = (line.replace('"', "").split(",") for line in path.read_text().splitlines()[:2])
            found.setdefault(model, {})[rest.removesuffix("_acc.csv")] = float(values[names.index("Overall")])
        return found

    return scores


@pytest.mark.parametrize(("writes", "score"), [("B", 1), ("blue", 1), ("A", 0)])
def test_vlmevalkit_scores_what_was_answered(evaluate, fake, writes, score):
    fake.writes = writes
    assert evaluate("runs/run", "cot") == {"run-cot": dict.fromkeys(SETS, score)}
    assert len(fake.asked) == 2 * len(SETS) and all(images for images, *_ in fake.asked)


def test_vlmevalkit_asks_a_checkpoint_in_all_modes(evaluate, trained_home, one_thread):
    found = evaluate(trained_home / "runs" / "run", "vanilla", "cot", "coconut")
    assert {model: {*scores} for model, scores in found.items()} == {
        f"run-{mode}": {*SETS} for mode in ("vanilla", "cot", "coconut")
    }
