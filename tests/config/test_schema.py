import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.config import RunConfig, load_config, schema
from multicoco.errors import UserError
from multicoco.methods import Method, MethodKeys

REPO = Path(__file__).parents[2]


RATE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


class TestWrittenConfig:
    @given(
        lr=st.one_of(
            RATE, st.dictionaries(st.sampled_from(["vision_tower", "projector", "new_tokens"]), RATE, min_size=1)
        ),
        text=st.one_of(
            st.sampled_from(["1e-4", "null", "yes", "12", "12:30", "010", "a: b", "# x", "2026-11-23", "<<", " "]),
            st.text(st.characters(exclude_categories=["Cs"])),
        ),
        epochs=st.one_of(st.integers(1), st.lists(st.integers(1), min_size=1)),
    )
    def test_reads_back_equal(self, tmp_path_factory, lr, text, epochs):
        config = RunConfig(
            mode="cot_train",
            name="x",
            model_id="m",
            train_path="t.json",
            lr=lr,
            betas=(0.8, 0.9),
            project=text,
            wandb={"tags": [text]},
            coconut={"epochs_per_stage": epochs},
        )
        again = tmp_path_factory.mktemp("again") / "config.yaml"
        again.write_bytes(config.to_yaml().encode())
        assert load_config(again) == config

    @pytest.mark.parametrize("value", [1e-30, 1e-5, 3.7e-4, 1.0, 12.5, 3e22])
    def test_keeps_any_float(self, write, minimal, value):
        config = RunConfig(**minimal, lr=value)
        path = write()
        path.write_text(config.to_yaml())
        assert load_config(path) == config

    def test_travels_to_other_processes(self, run):
        config = load_config(run, ["mode=coconut_train", "coconut.enabled=true", "coconut.first_stage=1"])
        assert pickle.loads(pickle.dumps(config)) == config


class TestMethod:
    @pytest.mark.parametrize(
        ("mode", "method"), [("cot_train", "cot"), ("vanilla_train", "vanilla"), ("coconut_train", "coconut")]
    )
    def test_of_a_published_mode(self, run, mode, method):
        overrides = [f"mode={mode}", f"coconut.enabled={str(method == 'coconut').lower()}", "coconut.first_stage=1"]
        assert load_config(run, overrides).trained_method == method
        by_name = load_config(run, [*overrides, "mode=train", f"method={method}"])
        assert (by_name.trained_method, by_name.mode) == (method, "train")
        assert load_config(run, [*overrides, f"method={method}"]).trained_method == method

    @pytest.mark.parametrize(
        ("overrides", "method"),
        [
            (["eval_config.cot=true"], "cot"),
            (["eval_config.vanilla=true", "eval_config.cot=true"], "cot"),
            (["eval_config.coconut=true", "eval_config.cot=true", "coconut.enabled=true"], "coconut"),
            (["method=vanilla"], "vanilla"),
            (["method=vanilla", "eval_config.cot=true"], "vanilla"),
        ],
    )
    def test_of_an_evaluation(self, run, overrides, method):
        assert load_config(run, ["mode=eval_only", "val_path=v", *overrides]).trained_method == method


class TestSectionsOfMethods:
    class Keys(MethodKeys):
        strength: int = 1

    class Needy(MethodKeys):
        strength: int

    def sections(self, monkeypatch, **methods):
        found = {
            name: type(name, (Method,), {"section": section, "Keys": keys, "__module__": "toy"})
            for name, (section, keys) in methods.items()
        }
        monkeypatch.setattr(schema, "load_all", lambda kind: found)
        return schema.method_sections.__wrapped__()

    def test_may_be_shared(self, monkeypatch):
        assert self.sections(monkeypatch, a=("toy", self.Keys), b=("toy", self.Keys), c=(None, None)) == {
            "toy": self.Keys
        }

    @pytest.mark.parametrize("section", ["lora", "wandb", "seed"])
    def test_do_not_take_the_engines_names(self, monkeypatch, section):
        with pytest.raises(UserError, match=rf"'a', toy.a: .* {section}, has other keys already"):
            self.sections(monkeypatch, a=(section, self.Keys))

    def test_have_one_set_of_keys_and_a_default_for_each(self, monkeypatch):
        with pytest.raises(UserError, match=r"'b', toy.b: .* toy, has other keys already"):
            self.sections(monkeypatch, a=("toy", self.Keys), b=("toy", self.Needy))
        with pytest.raises(UserError, match=r"'a', toy.a: .* toy, needs a default for strength"):
            self.sections(monkeypatch, a=("toy", self.Needy))


def test_a_package_brings_a_method_with_keys(tmp_path):
    """Installed by hand: a module, and the entry point that names it."""
    (tmp_path / "toy_method.py").write_text(
        "from multicoco.methods import Method, MethodKeys\n"
        "class Keys(MethodKeys):\n"
        "    strength: int = 1\n"
        "    def problems(self, config):\n"
        "        if self.strength > 9: yield f'toy.strength is {self.strength}: lower it'\n"
        "class Toy(Method):\n"
        "    section, Keys = 'toy', Keys\n"
    )
    installed = tmp_path / "toy-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[multicoco.methods]\ntoy = toy_method:Toy\n")
    (tmp_path / "run.yaml").write_text(
        "{mode: train, method: toy, name: x, model_id: m, train_path: t, toy: {strength: 2.0}}"
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from multicoco.config import config_reference, load_config
from multicoco.errors import UserError

config = load_config("run.yaml")
assert (config.trained_method, config.toy.strength) == ("toy", 2)
sections = list(config.model_dump())
assert sections[sections.index("generation") :][:4] == ["generation", "toy", "coconut", "icot"]
assert "`toy.strength`" in config_reference()
for override, said in (
    ("toy.strengt=1", "did you mean toy.strength?"),
    ("toy.strength=x", "must be a valid integer"),
    ("toy.strength=10", "lower it"),
    ("mode=cot_train", "method is toy"),
    ("coconut.enabled=true", "coconut.enabled is true"),
):
    try:
        load_config("run.yaml", [override])
    except UserError as error:
        assert said in str(error), error
    else:
        sys.exit(f"{{override}} was taken")
evaluation = ["mode=eval_only", "val_path=v", "train_path=null"]
assert load_config("run.yaml", evaluation).trained_method == "toy"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_neither_configs_nor_methods_import_torch():
    code = (
        "import sys, multicoco.config.load, multicoco.config.reference\n"
        "from multicoco.registry import load_all\n"
        "assert {'vanilla', 'cot', 'coconut'} <= set(load_all('methods'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
