import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from multicoco.config import RunConfig, config_reference, load_config
from multicoco.errors import UserError

REPO = Path(__file__).parents[1]
MINIMAL = {"mode": "cot_train", "name": "x", "model_id": "m", "train_path": "t.json"}


def write(path: Path, content: dict | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.fixture
def minimal(tmp_path):
    return write(tmp_path / "run.yaml", MINIMAL)


def error(path, *overrides) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


class TestInheritance:
    def test_any_depth_and_deep_merge_of_sections(self, tmp_path):
        write(tmp_path / "base.yaml", {"lr": 1.0, "seed": 3, "generation": {"num_beams": 2, "top_p": 0.5}})
        write(tmp_path / "sub" / "parent.yaml", {"inherits": "../base.yaml", **MINIMAL, "generation": {"top_p": 0.7}})
        child = write(tmp_path / "sub" / "child.yaml", {"inherits": "parent.yaml", "seed": 4})
        config = load_config(child)
        assert (config.lr, config.seed) == (1.0, 4)
        assert (config.generation.num_beams, config.generation.top_p) == (2, 0.7)

    def test_base_beside_the_file_is_implicit(self, tmp_path, minimal):
        write(tmp_path / "base.yaml", {"seed": 5})
        assert load_config(minimal).seed == 5

    def test_lists_are_replaced(self, tmp_path):
        write(tmp_path / "base.yaml", {"wandb": {"tags": ["a", "b"]}})
        path = write(tmp_path / "run.yaml", MINIMAL | {"wandb": {"tags": ["c"]}})
        assert load_config(path).wandb.tags == ["c"]

    def test_a_circle_is_shown(self, tmp_path):
        write(tmp_path / "a.yaml", {"inherits": "b.yaml"})
        write(tmp_path / "b.yaml", {"inherits": "a.yaml"})
        assert "a.yaml -> " in error(tmp_path / "a.yaml") and "circle" in error(tmp_path / "a.yaml")

    def test_a_missing_parent_is_named(self, tmp_path):
        write(tmp_path / "a.yaml", {"inherits": "nowhere.yaml"})
        assert "nowhere.yaml" in error(tmp_path / "a.yaml")


class TestValues:
    def test_scientific_notation_is_a_number(self, tmp_path):
        path = write(tmp_path / "run.yaml", "mode: cot_train\nname: x\nmodel_id: m\ntrain_path: t\nlr: 1e-4\n")
        assert load_config(path).lr == 1e-4
        assert load_config(path, ["lr=2E+1"]).lr == 20.0

    def test_overrides_are_yaml_and_win(self, minimal):
        config = load_config(minimal, ["generation.top_p=0.3", "wandb.tags=[a, b]", "val_path=null", "seed=1", "seed=2"])
        assert (config.generation.top_p, config.wandb.tags, config.val_path, config.seed) == (0.3, ["a", "b"], None, 2)

    @pytest.mark.parametrize("text", ["None", "none", "null", "''"])
    def test_none_as_the_original_writes_it(self, minimal, text):
        assert load_config(minimal, [f"load_model_path={text}"]).load_model_path is None

    @pytest.mark.parametrize(("value", "kept"), [("true", 1), ("false", 0), ("4", 4)])
    def test_keep_best_checkpoints_counts_or_switches(self, minimal, value, kept):
        assert load_config(minimal, [f"keep_best_checkpoints={value}"]).keep_best_checkpoints == kept

    def test_resolved_config_reads_back_equal(self, tmp_path, minimal):
        config = load_config(minimal, ["betas=[0.8, 0.9]", "coconut.epochs_per_stage=[1, 2]", "lr=3e-5"])
        again = write(tmp_path / "again" / "run.yaml", config.to_yaml())
        assert load_config(again) == config

    def test_run_folder(self, minimal):
        assert load_config(minimal, ["output_dir=o"]).run_dir == Path("o/x")
        assert load_config(minimal, ["output_dir=o", "use_run_name_in_output_dir=false"]).run_dir == Path("o")

    def test_deepspeed_path_is_found_in_the_repository_of_the_config(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = load_config(REPO / "args" / "aokvqa_cot.yaml")
        assert Path(config.deepspeed) == REPO / "ds_configs" / "zero2.json"

    @pytest.mark.parametrize("value", [1e-30, 1e-5, 3.7e-4, 1.0, 12.5, 3e22])
    def test_any_float_survives_the_written_config(self, tmp_path, value):
        config = RunConfig(**MINIMAL, lr=value)
        assert load_config(write(tmp_path / "written.yaml", config.to_yaml())) == config


class TestErrors:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("lerning_rate=1", "lerning_rate (--set lerning_rate=1): unknown key"),
            ("coconut.c_thougt=1", "did you mean coconut.c_thought?"),
            ("c_thougt=1", "did you mean coconut.c_thought?"),
            ("num_epoch=1", "did you mean num_epochs?"),
            ("lr=fast", "lr (--set lr=fast): "),
            ("batch_size='4'", "batch_size (--set batch_size='4'): "),
            ("batch_size=0", "greater than 0, not 0"),
            ("batch_size=true", "batch_size"),
            ("bf16=1", "bf16 (--set bf16=1): "),
            ("generation.top_p=1.5", "generation.top_p (--set generation.top_p=1.5): "),
            ("wandb=online", "wandb (--set wandb=online): "),
            ("betas=[0.9]", "betas (--set betas=[0.9]): "),
            ("mode=train", "mode (--set mode=train): "),
            ("name=a/b", "name (--set name=a/b): "),
            ("lr", "--set lr: write it as --set key=value"),
            ("lr=[1", "--set lr=[1:1: not valid YAML"),
        ],
    )
    def test_names_key_origin_and_remedy(self, minimal, override, expected):
        assert expected in error(minimal, override)

    def test_names_the_file_of_the_chain_that_set_the_key(self, tmp_path, minimal):
        base = write(tmp_path / "base.yaml", {"lrr": 1})
        assert f"lrr ({base}): unknown key, did you mean lr?" in error(minimal)

    def test_lists_every_problem_at_once(self, minimal):
        message = error(minimal, "lr=x", "seed=-1", "foo=1")
        assert all(key in message for key in ("lr (", "seed (", "foo ("))

    def test_missing_keys(self, tmp_path):
        message = error(write(tmp_path / "run.yaml", {}))
        assert all(f"{key}: missing" in message for key in ("mode", "name", "model_id"))

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("a: 1\na: 2\n", "'a' stands twice"),
            ("- 1\n", "mapping"),
            ("a: [", "not valid YAML"),
            ("a: !!python/object/apply:os.system [ls]", "run.yaml:1: not valid YAML"),
            ("1: 2", "mapping"),
        ],
    )
    def test_bad_yaml(self, tmp_path, content, expected):
        assert expected in error(write(tmp_path / "run.yaml", content))

    def test_unreadable_file(self, tmp_path):
        assert "nothing.yaml" in error(tmp_path / "nothing.yaml")

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            (["mode=coconut_train"], "coconut.enabled is false"),
            (["coconut.enabled=true"], "coconut.enabled is true"),
            (["eval_config.coconut=true"], "eval_config.coconut is true"),
            (["train_path=null"], "train_path is null"),
            (["mode=eval_only", "eval_config.cot=true"], "val_path is null"),
            (["mode=eval_only", "val_path=v"], "none of cot, coconut and vanilla"),
            (["bf16=true", "fp16=true"], "bf16 and fp16"),
            (["save_only_improve=true"], "save_only_improve"),
            (["mode=coconut_train", "coconut.enabled=true", "eval_config.eval_latent_tokens=9"], "never saw more"),
            (["coconut.uniform_prob=0.1"], "coconut.uniform_prob"),
            ([f"freeze.{part}=true" for part in ("vision_tower", "projector", "language_model")], "nothing is left"),
        ],
    )
    def test_impossible_combinations(self, minimal, overrides, expected):
        assert expected in error(minimal, *overrides)


class TestShippedConfigs:
    @pytest.mark.parametrize("path", sorted(p for p in (REPO / "args").glob("*.yaml") if p.name != "base.yaml"), ids=str)
    def test_all_load(self, path):
        config = load_config(path)
        assert (REPO / config.deepspeed).exists()

    def test_aokvqa_values(self):
        def values(name):
            c = load_config(REPO / "args" / f"aokvqa_{name}.yaml")
            g = c.generation
            return c, (c.model_id, c.batch_size, c.eval_batch_size, g.max_new_tokens, g.temperature, g.top_p)

        model = "OpenGVLab/InternVL3-1B-hf"
        cot, numbers = values("cot")
        assert (cot.mode, cot.num_epochs) == ("cot_train", 10) and numbers == (model, 16, 64, 256, 1.0, 0.9)
        coconut, numbers = values("coconut")
        assert numbers == (model, 16, 64, 256, 0.8, 0.9)
        assert (coconut.mode, coconut.num_epochs, coconut.coconut.c_thought) == ("coconut_train", 50, 1)
        assert (coconut.coconut.epochs_per_stage, coconut.coconut.max_latent_stage) == (5, 6)
        cot_eval, numbers = values("cot_eval")
        assert (cot_eval.mode, cot_eval.eval_config.cot) == ("eval_only", True) and numbers == (model, 16, 64, 256, 1.0, 0.9)
        coconut_eval, numbers = values("coconut_eval")
        assert coconut_eval.eval_config.coconut and coconut_eval.eval_config.eval_latent_tokens == 6
        assert numbers == (model, 16, 64, 256, 0.8, 0.9)
        vanilla, numbers = values("vanilla_eval")
        assert vanilla.eval_config.vanilla and numbers == (model, 16, 64, 128, 0.6, 0.8)
        assert vanilla.load_model_path is None


def test_the_reference_in_the_docs_is_up_to_date():
    assert (REPO / "docs" / "config.md").read_text() == config_reference(), (
        "run: python -m multicoco.config > docs/config.md"
    )


def test_reading_a_config_does_not_import_torch():
    code = "import sys, multicoco.config, multicoco.engine.ds_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
