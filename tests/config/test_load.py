from pathlib import Path

import pytest
import yaml

from multicoco.config import load_config

REPO = Path(__file__).parents[2]


class TestInheritance:
    def test_any_depth_and_deep_merge_of_sections(self, write):
        write({"lr": 1.0, "seed": 3, "generation": {"num_beams": 2, "top_p": 0.5}}, "base.yaml")
        write({"inherits": "../base.yaml", "generation": {"top_p": 0.7}}, "sub/parent.yaml")
        config = load_config(write({"inherits": "parent.yaml", "seed": 4}, "sub/child.yaml"))
        assert (config.lr, config.seed) == (1.0, 4)
        assert (config.generation.num_beams, config.generation.top_p) == (2, 0.7)

    def test_base_beside_the_file_is_implicit(self, write):
        write({"seed": 5}, "base.yaml")
        assert load_config(write()).seed == 5

    def test_null_is_no_parent_at_all(self, write):
        write({"seed": 5}, "base.yaml")
        assert load_config(write("inherits: null\n")).seed == 0

    def test_lists_are_replaced(self, write):
        write({"wandb": {"tags": ["a", "b"]}}, "base.yaml")
        assert load_config(write({"wandb": {"tags": ["c"]}})).wandb.tags == ["c"]

    def test_a_mapping_replaces_a_value_and_a_value_a_mapping(self, write, error):
        write({"generation": 3, "coconut": {"c_thought": 2}}, "base.yaml")
        assert load_config(write(), ["generation.top_p=0.5", "coconut={}"]).coconut.c_thought == 2
        assert "coconut (--set coconut=3): must be a mapping" in error(write(), "generation={}", "coconut=3")

    def test_a_circle_is_shown(self, write, error):
        b, a = write({"inherits": "a.yaml"}, "b.yaml"), write({"inherits": "b.yaml"}, "a.yaml")
        assert f"inherits in a circle: {a} -> {b} -> {a}" in error(a)

    def test_base_may_itself_inherit(self, write):
        write({"inherits": "common.yaml"}, "base.yaml")
        write({"seed": 6}, "common.yaml")
        assert load_config(write()).seed == 6

    def test_a_missing_parent_and_its_heir_are_named(self, write, error):
        path = write("inherits: nowhere.yaml\n")
        assert f"{path}:5: inherits nowhere.yaml, but there is no file" in error(path)

    def test_only_one_parent(self, write, error):
        assert "path of one YAML file" in error(write({"inherits": ["b.yaml", "c.yaml"]}))


class TestPaths:
    KEYS = ("output_dir", "data_dir", "image_dir", "train_path", "val_path", "model_id", "load_model_path", "deepspeed")

    @pytest.fixture(autouse=True)
    def environment(self, tmp_path, monkeypatch):
        (tmp_path / "home").mkdir()
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("PLACE", str(tmp_path / "place"))
        monkeypatch.delenv("NOWHERE", raising=False)

    @pytest.mark.parametrize("key", KEYS)
    def test_every_path_key_is_expanded_in_files_and_overrides(self, tmp_path, write, key):
        for start, meant in (
            ("~", tmp_path / "home"),
            ("$PLACE", tmp_path / "place"),
            ("${PLACE}", tmp_path / "place"),
        ):
            in_file = load_config(write({key: f"{start}/x"}))
            overridden = load_config(write(), [f"{key}={start}/x"])
            assert getattr(in_file, key) == getattr(overridden, key) == str(meant / "x")

    @pytest.mark.parametrize("key", KEYS)
    def test_a_variable_that_is_not_set_is_named_with_the_key(self, write, error, key):
        path = write({key: "$NOWHERE/x"})
        assert f"{key} ({path}:" in error(path) and "NOWHERE is not set" in error(path)

    def test_the_run_keeps_what_they_became(self, tmp_path, write, monkeypatch):
        config = load_config(write({"output_dir": "$PLACE/runs"}))
        written = tmp_path / "config.yaml"
        written.write_text(config.to_yaml())
        monkeypatch.delenv("PLACE")
        assert load_config(written) == config
        assert yaml.safe_load(written.read_text())["output_dir"] == f"{tmp_path}/place/runs"

    def test_a_name_too_and_no_tilde_becomes_a_folder(self, write, error, monkeypatch):
        monkeypatch.setenv("JOB", "42")
        assert load_config(write(), ["name=x_$JOB"]).run_dir == Path("runs/x_42")
        assert "must be the name of a folder" in error(write(), "name=~")

    def test_parents_and_the_file_itself(self, tmp_path, write, error):
        write({"seed": 7}, "home/parent.yaml")
        child = write({"inherits": "~/parent.yaml"}, "place/child.yaml")
        assert load_config("$PLACE/child.yaml").seed == load_config(child).seed == 7
        assert "NOWHERE is not set" in error("$NOWHERE/child.yaml")
        assert "NOWHERE is not set" in error(write({"inherits": "$NOWHERE/x.yaml"}))

    def test_run_folder(self, run):
        assert load_config(run, ["output_dir=o"]).run_dir == Path("o/x")
        assert load_config(run, ["output_dir=o", "use_run_name_in_output_dir=false"]).run_dir == Path("o")

    def test_deepspeed_path_is_found_in_the_repository_of_the_config(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = load_config(REPO / "args" / "aokvqa_cot.yaml")
        assert Path(config.deepspeed) == REPO / "ds_configs" / "zero2.json"
        here = tmp_path / "ds_configs" / "zero2.json"  # relative to the working directory comes first
        here.parent.mkdir()
        here.write_text("{}")
        assert Path(load_config(REPO / "args" / "aokvqa_cot.yaml").deepspeed).resolve() == here
        assert load_config(REPO / "args" / "aokvqa_cot.yaml", ["deepspeed=no.json"]).deepspeed == "no.json"


class TestOverrides:
    def test_win_and_the_last_one_most(self, run):
        config = load_config(run, ["generation.top_p=0.3", "wandb.tags=[a, b]", "val_path=null", "seed=1", "seed=2"])
        assert (config.generation.top_p, config.wandb.tags, config.val_path, config.seed) == (0.3, ["a", "b"], None, 2)

    def test_a_section_merges(self, write):
        config = load_config(write({"generation": {"top_p": 0.5, "num_beams": 2}}), ["generation={top_p: 0.7}"])
        assert (config.generation.top_p, config.generation.num_beams) == (0.7, 2)

    def test_entries_for_more_stages_than_there_are_may_be_inherited_and_are_refused_else(self, write, error):
        keys = {"enabled": True, "max_latent_stage": 3, "first_stage": 1, "stage_lr": [3, 2, 1]}
        path = write({"mode": "coconut_train", "num_epochs": 4, "coconut": keys})
        codi = ("mode=train", "method=codi", "coconut.first_stage=null")
        assert load_config(path, codi).coconut.stage_lr == [3, 2, 1]
        assert load_config(path, [*codi, "coconut.stage_lr=[1]"]).coconut.stage_lr == [1]
        assert error(path, *codi, "coconut={stage_lr: [1, 2]}").endswith(
            "coconut.stage_lr has 2 entries, one a stage, but codi has here one stage, 4: leave out the last 1"
        )
        assert error(path, "coconut.epochs_per_stage=[1, 1, 1, 1, 1, 9]").endswith(
            "6 entries, one a stage, but coconut has here the stages 1 to 4: leave out the last 2"
        )

    @pytest.mark.parametrize(
        ("parent", "own", "is_refused"),
        [
            (None, {"method": "codi", "coconut.stage_lr": [3, 2]}, True),
            (None, {"method": "coconut", "coconut.stage_lr": [3, 2, 1, 1, 1]}, True),
            (None, {"method": "coconut", "coconut.stage_lr": [3, 2, 1, 1]}, False),
            ({"method": "coconut", "coconut.stage_lr": [3, 2, 1]}, {"method": "codi"}, False),
            ({"method": "codi"}, {"method": "codi", "coconut.stage_lr": [3, 2]}, True),
        ],
    )
    def test_so_they_are_where_one_file_says_how_many_there_are(self, write, error, parent, own, is_refused):
        shared = {"mode": "train", "num_epochs": 4, "coconut.enabled": True, "coconut.max_latent_stage": 2}
        if parent:
            write(shared | parent, "parent.yaml")
        path = write(shared | ({"inherits": "parent.yaml"} if parent else {}) | own)
        if is_refused:
            assert "entries, one a stage, but" in error(path)
        else:
            saved = path.with_name("saved.yaml")
            saved.write_text(load_config(path).to_yaml())
            assert load_config(saved, saved=True).coconut.stage_lr == [3, 2, 1, 1][: 3 if parent else 4]

    def test_how_thoughts_are_trained_may_be_inherited_by_a_method_without_any_and_is_refused_else(self, write, error):
        keys = {"thoughts": "detached", "jacobi_iterations": 1, "projection": "mlp", "collapse_below": 0.5}
        write({"mode": "train", "coconut": keys, "num_epochs": 4}, "parent.yaml")
        path = write({"inherits": "parent.yaml", "mode": "train", "method": "icot"})
        assert load_config(path).coconut.jacobi_iterations == 1
        for setting in ("jacobi_iterations=1", "norm=embedding", "gradient_passes=0", "advance_when_accuracy=0.9"):
            key, _, value = setting.partition("=")
            said = error(path, "method=icot", f"coconut.{setting}")
            assert f"coconut.{key} is {value} but the method is icot, which does not read it: leave it out" in said
        assert load_config(path, ["coconut.c_thought=3", "coconut.projection=none"]).coconut.c_thought == 3
        both = write({"mode": "cot_train", "coconut": keys})
        assert error(both).count("but the method is cot, which does not read it") == len(keys)


class TestShippedConfigs:
    @pytest.mark.parametrize(
        "path", sorted(p for p in (REPO / "args").glob("*.yaml") if p.name != "base.yaml"), ids=lambda p: p.name
    )
    def test_all_load(self, path):
        assert (REPO / load_config(path).deepspeed).exists()

    @pytest.mark.parametrize("name", ["cot", "coconut", "cot_eval", "coconut_eval", "vanilla_eval"])
    def test_published_configs_keep_their_values(self, monkeypatch, name):
        """All of them: keys may be added, but none goes or changes."""
        monkeypatch.chdir(REPO)
        published = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())
        resolved = yaml.safe_load(load_config(f"args/aokvqa_{name}.yaml").to_yaml())
        for key, value in (published["all"] | published[name]).items():
            where = resolved
            for part in key.split("."):
                where = where[part]
            assert (key, where) == (key, value)
