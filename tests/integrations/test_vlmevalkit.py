"""The adapter against VLMEvalKit's interface and, where that is installed, in it itself (docs/integrations.md)."""

import importlib
import inspect
import sys

import doubles
import pytest

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
