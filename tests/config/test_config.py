import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from multicoco.config import RunConfig, config_reference, load_config
from multicoco.errors import UserError

REPO = Path(__file__).parents[2]
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

    def test_a_mapping_replaces_a_value_and_a_value_a_mapping(self, tmp_path, minimal):
        write(tmp_path / "base.yaml", {"generation": 3, "coconut": {"c_thought": 2}})
        assert load_config(minimal, ["generation.top_p=0.5", "coconut={}"]).coconut.c_thought == 2
        assert "coconut (--set coconut=3): must be a mapping" in error(minimal, "generation={}", "coconut=3")

    def test_a_circle_is_shown(self, tmp_path):
        write(tmp_path / "a.yaml", {"inherits": "b.yaml"})
        write(tmp_path / "b.yaml", {"inherits": "a.yaml"})
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        assert f"inherits in a circle: {a} -> {b} -> {a}" in error(a)

    def test_base_may_itself_inherit(self, tmp_path, minimal):
        write(tmp_path / "base.yaml", {"inherits": "common.yaml"})
        write(tmp_path / "common.yaml", {"seed": 6})
        assert load_config(minimal).seed == 6

    def test_a_missing_parent_and_its_heir_are_named(self, tmp_path):
        path = write(tmp_path / "a.yaml", {"inherits": "nowhere.yaml"})
        assert f"{path}:1: inherits nowhere.yaml, but there is no file" in error(path)

    def test_only_one_parent(self, tmp_path):
        assert "path of one YAML file" in error(write(tmp_path / "a.yaml", {"inherits": ["b.yaml", "c.yaml"]}))


class TestValues:
    def test_scientific_notation_is_a_number(self, tmp_path):
        path = write(tmp_path / "run.yaml", "mode: cot_train\nname: x\nmodel_id: m\ntrain_path: t\nlr: 1e-4\n")
        assert load_config(path).lr == 1e-4
        assert load_config(path, ["lr=2E+1"]).lr == 20.0

    def test_overrides_are_yaml_and_win(self, minimal):
        config = load_config(
            minimal, ["generation.top_p=0.3", "wandb.tags=[a, b]", "val_path=null", "seed=1", "seed=2"]
        )
        assert (config.generation.top_p, config.wandb.tags, config.val_path, config.seed) == (0.3, ["a", "b"], None, 2)

    @pytest.mark.parametrize("text", ["None", "none", "null", "''"])
    def test_none_as_the_original_writes_it(self, minimal, text):
        assert load_config(minimal, [f"load_model_path={text}"]).load_model_path is None

    @pytest.mark.parametrize(("value", "kept"), [("true", 1), ("false", 0), ("4", 4)])
    def test_keep_best_checkpoints_counts_or_switches(self, minimal, value, kept):
        assert load_config(minimal, [f"keep_best_checkpoints={value}"]).keep_best_checkpoints == kept

    def test_merge_keys_are_no_duplicates(self, tmp_path):
        merge = "generation:\n  <<: {top_p: 0.5, num_beams: 2}\n  top_p: 0.4\n"
        config = load_config(write(tmp_path / "run.yaml", yaml.safe_dump(MINIMAL) + merge))
        assert (config.generation.top_p, config.generation.num_beams) == (0.4, 2)

    @given(
        lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        text=st.one_of(
            st.sampled_from(["1e-4", "null", "yes", "12", "a: b", "# x", "2026-11-23", "<<", " "]),
            st.text(st.characters(exclude_categories=["Cs"])),
        ),
        epochs=st.one_of(st.integers(1), st.lists(st.integers(1), min_size=1)),
    )
    def test_resolved_config_reads_back_equal(self, tmp_path_factory, lr, text, epochs):
        config = RunConfig(
            **MINIMAL,
            lr=lr,
            betas=(0.8, 0.9),
            project=text,
            wandb={"tags": [text]},
            coconut={"epochs_per_stage": epochs},
        )
        again = tmp_path_factory.mktemp("again") / "config.yaml"
        again.write_bytes(config.to_yaml().encode())
        assert load_config(again) == config

    def test_run_folder(self, minimal):
        assert load_config(minimal, ["output_dir=o"]).run_dir == Path("o/x")
        assert load_config(minimal, ["output_dir=o", "use_run_name_in_output_dir=false"]).run_dir == Path("o")

    def test_deepspeed_path_is_found_in_the_repository_of_the_config(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = load_config(REPO / "args" / "aokvqa_cot.yaml")
        assert Path(config.deepspeed) == REPO / "ds_configs" / "zero2.json"
        here = write(tmp_path / "ds_configs" / "zero2.json", "{}")  # relative to the working directory comes first
        assert Path(load_config(REPO / "args" / "aokvqa_cot.yaml").deepspeed).resolve() == here
        assert load_config(REPO / "args" / "aokvqa_cot.yaml", ["deepspeed=no.json"]).deepspeed == "no.json"

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
            ("batch_size=0", "must be greater than 0 (got 0)"),
            ("batch_size=true", "batch_size"),
            ("bf16=1", "bf16 (--set bf16=1): "),
            ("generation.top_p=1.5", "generation.top_p (--set generation.top_p=1.5): "),
            ("wandb=online", "wandb (--set wandb=online): "),
            ("lr=.inf", "lr (--set lr=.inf): must be a finite number"),
            ("betas=[0.9]", "betas (--set betas=[0.9]): "),
            ("resume=yesterday", "resume (--set resume=yesterday): must be 'auto' or must be a valid boolean or"),
            ("coconut.epochs_per_stage=[]", "coconut.epochs_per_stage (--set "),
            ("coconut={c_thought: x}", "coconut.c_thought (--set coconut={c_thought: x}): must be a valid integer"),
            ("cococnut.enabled=true", "did you mean coconut?"),
            ("lr=", "lr (--set lr=): must be a valid number (got None)"),
            ("mode=train", "mode (--set mode=train): "),
            ("name=a/b", "name (--set name=a/b): must be the name of a folder"),
            ("name=..", "name (--set name=..): must be the name of a folder"),
            ("name=''", "name (--set name=''): must be the name of a folder"),
            ("lr", "--set lr: write it as --set key=value"),
            ("lr=[1", "--set lr=[1: not valid YAML in line 1"),
        ],
    )
    def test_names_key_origin_and_remedy(self, minimal, override, expected):
        assert expected in error(minimal, override)

    def test_names_the_file_of_the_chain_that_set_the_key(self, tmp_path, minimal):
        base = write(tmp_path / "base.yaml", "seed: 1\nlr: x\ngeneration:\n  top_pp: 1\n")
        message = error(minimal)
        assert f"lr ({base}:2): must be a valid number (got 'x')" in message
        assert f"generation.top_pp ({base}:4): unknown key, did you mean generation.top_p?" in message

    def test_names_the_last_one_that_set_the_key(self, tmp_path, minimal):
        write(tmp_path / "base.yaml", {"lr": 1})
        run = write(minimal, MINIMAL | {"lr": "x"})
        assert f"lr ({run}:" in error(run)
        assert "coconut.c_thought (--set coconut={c_thought: x})" in error(
            run, "coconut.c_thought=1", "coconut={c_thought: x}"
        )

    def test_lists_every_problem_at_once(self, minimal):
        message = error(minimal, "lr=x", "seed=-1", "foo=1")
        assert all(key in message for key in ("lr (", "seed (", "foo ("))

    def test_missing_keys(self, tmp_path):
        message = error(write(tmp_path / "run.yaml", {}))
        assert all(f"{key}: missing" in message for key in ("mode", "name", "model_id"))

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("a: 1\na: 2\n", "in line 2: key 'a' stands twice"),
            ("generation:\n  top_p: 1\n  top_p: 1\n", "in line 3: key 'top_p' stands twice"),
            ("seed: 2026-11-31", "not valid YAML"),
            ("seed: !!int x", "not valid YAML"),
            ("coconut:\n", "coconut ("),
            ("- 1\n", "mapping"),
            ("a: [", "not valid YAML"),
            ("a: !!python/object/apply:os.system [ls]", "run.yaml: not valid YAML in line 1"),
            ("1: 2", "mapping"),
        ],
    )
    def test_bad_yaml(self, tmp_path, content, expected):
        assert expected in error(write(tmp_path / "run.yaml", content))

    @pytest.mark.parametrize("name", ["nothing.yaml", "."])
    def test_unreadable_file(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        assert f"{name}: cannot be read" in error(name)

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            (["mode=coconut_train"], ["mode is coconut_train", "coconut.enabled is false"]),
            (["coconut.enabled=true"], ["mode is cot_train", "coconut.enabled is true"]),
            (["mode=vanilla_train", "coconut.enabled=true"], ["mode is vanilla_train", "coconut.enabled is true"]),
            (["eval_config.coconut=true"], ["eval_config.coconut is true", "coconut.enabled is false"]),
            (["train_path=null"], ["mode is cot_train", "train_path is null"]),
            (["mode=eval_only", "eval_config.cot=true"], ["mode is eval_only", "val_path is null"]),
            (["mode=eval_only", "val_path=v"], ["mode is eval_only", "none of eval_config.cot"]),
            (["coconut.stage_lr=[1e-3]", "reset_optimizer=false"], "coconut.stage_lr is set but reset_optimizer"),
            (["bf16=true", "fp16=true"], ["bf16 and fp16 are both true"]),
            (["save_only_improve=true"], ["save_only_improve is true", "val_path is null"]),
            (
                ["mode=coconut_train", "coconut.enabled=true", "eval_config.eval_latent_tokens=2"],
                ["eval_config.eval_latent_tokens is 2", "coconut.max_latent_stage * coconut.c_thought is 1"],
            ),
            (["coconut.uniform_prob=0.1"], ["coconut.uniform_prob is 0.1", "mode is cot_train"]),
            (
                ["lora.rank=8", "freeze.language_model=true"],
                ["lora.rank is 8 but freeze.language_model is true", "set it to false"],
            ),
            (
                [f"freeze.{part}=true" for part in ("vision_tower", "projector", "language_model")],
                ["freeze.vision_tower", "freeze.projector", "freeze.language_model", "mode is cot_train"],
            ),
        ],
    )
    def test_impossible_combinations(self, minimal, overrides, expected):
        message = error(minimal, *overrides)
        assert all(part in message for part in expected)

    def test_nearly_impossible_combinations_are_possible(self, minimal):
        coconut = ["mode=coconut_train", "coconut.enabled=true", "coconut.uniform_prob=0.1"]
        load_config(minimal, [*coconut, "eval_config.coconut=true", "eval_config.eval_latent_tokens=1"])
        load_config(minimal, [*coconut, "mode=eval_only", "val_path=v", "eval_config.coconut=true"])
        frozen = [f"freeze.{part}=true" for part in ("vision_tower", "projector", "language_model")]
        load_config(minimal, ["mode=eval_only", "val_path=v", "train_path=null", "eval_config.cot=true", *frozen])
        load_config(minimal, ["freeze.vision_tower=true", "freeze.projector=true", "eval_config.eval_latent_tokens=9"])
        load_config(minimal, ["save_only_improve=true", "val_path=v", "bf16=true"])


class TestShippedConfigs:
    @pytest.mark.parametrize(
        "path", sorted(p for p in (REPO / "args").glob("*.yaml") if p.name != "base.yaml"), ids=str
    )
    def test_all_load(self, path):
        config = load_config(path)
        assert (REPO / config.deepspeed).exists()

    @pytest.mark.parametrize("name", ["cot", "coconut", "cot_eval", "coconut_eval", "vanilla_eval"])
    def test_aokvqa_values_all_share(self, name):
        c = load_config(REPO / "args" / f"aokvqa_{name}.yaml")
        assert (c.model_id, c.freeze.vision_tower, c.bf16) == ("OpenGVLab/InternVL3-1B-hf", True, True)
        assert (c.data_dir, c.image_dir) == ("data/aokvqa", "data/coco")
        assert (c.train_path, c.val_path) == ("aokvqa_v1p0_train.json", "aokvqa_v1p0_val.json")
        assert (c.batch_size, c.eval_batch_size, c.lr, c.warmup_steps) == (16, 64, 1e-5, 100)
        assert c.activation_checkpointing and Path(c.deepspeed).name == "zero2.json"
        assert c.mode == ("eval_only" if "eval" in name else f"{name}_train") and c.generation.do_sample

    @pytest.mark.parametrize(
        ("name", "num_epochs", "max_new_tokens", "temperature", "top_p", "load_model_path"),
        [
            ("cot", 10, 256, 1.0, 0.9, None),
            ("coconut", 50, 256, 0.8, 0.9, "runs/aokvqa_cot"),
            ("cot_eval", None, 256, 1.0, 0.9, "runs/aokvqa_cot"),
            ("coconut_eval", None, 256, 0.8, 0.9, "runs/aokvqa_coconut"),
            ("vanilla_eval", None, 128, 0.6, 0.8, None),
        ],
    )
    def test_aokvqa_values_of_each(self, name, num_epochs, max_new_tokens, temperature, top_p, load_model_path):
        c = load_config(REPO / "args" / f"aokvqa_{name}.yaml")
        assert c.load_model_path == load_model_path
        assert num_epochs in (c.num_epochs, None)
        assert (c.generation.max_new_tokens, c.generation.temperature, c.generation.top_p) == (
            max_new_tokens,
            temperature,
            top_p,
        )

    def test_aokvqa_latent_reasoning_and_evaluation(self):
        train, *evaluations = (
            load_config(REPO / "args" / f"aokvqa_{name}.yaml")
            for name in ("coconut", "coconut_eval", "cot_eval", "vanilla_eval")
        )
        coconut = train.coconut
        assert (coconut.c_thought, coconut.epochs_per_stage, coconut.max_latent_stage) == (1, 5, 6)
        assert coconut.enabled and coconut.pad_latent_to_max and evaluations[0].coconut == coconut
        assert [e.eval_config.model_dump(exclude_defaults=True) for e in evaluations] == [
            {"coconut": True, "eval_latent_tokens": 6},
            {"cot": True},
            {"vanilla": True},
        ]


def test_the_reference_in_the_docs_is_up_to_date():
    assert (REPO / "docs" / "config.md").read_text() == config_reference(), (
        "run: python -m multicoco.config.reference > docs/config.md"
    )


def test_reading_a_config_does_not_import_torch():
    code = "import sys, multicoco.config, multicoco.engine.ds_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
