import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from multicoco.config import load_config

WORDS = ["2e5", "007", "yes", "on", "1_000", "12:30", "2026-11-25", "1.0", ".inf", "0x10", "<<", "="]
PUNCTUATION = [
    "a: b",
    "@x",
    "%x",
    "*x",
    "&x",
    "- x",
    "!x",
    "[a",
    "{a: b}",
    "a # b",
    "# b",
    " x ",
    "'a' b",
    '"a" # b',
    "'",
]


def read(path, override):
    value = load_config(path, [override])
    for part in override.partition("=")[0].split("."):
        value = getattr(value, part)
    return value


class TestText:
    @pytest.mark.parametrize("text", [*WORDS, *PUNCTUATION, "", "!!python/name:os.system"])
    def test_arrives_whole_from_a_command_line(self, run, text):
        assert load_config(run, [f"project={text}"]).project == text

    @given(text=st.text(st.characters(exclude_categories=["Cs"])))
    def test_arrives_whole_whatever_it_is(self, tmp_path_factory, text):
        path = tmp_path_factory.mktemp("run") / "run.yaml"
        path.write_text("{mode: cot_train, name: x, model_id: m, train_path: t}")
        if text not in ("null", "Null", "NULL") and not (text[:1] in ("'", '"') and text[-1:] == text[:1]):
            assert load_config(path, [f"project={text}"]).project == text

    @pytest.mark.parametrize("text", WORDS)
    def test_in_a_file_is_what_is_written_there(self, write, text):
        config = load_config(write(f"project: {text}\nwandb: {{tags: [{text}, a]}}\n"))
        assert (config.project, config.wandb.tags) == (text, [text, "a"])

    @pytest.mark.parametrize(
        ("written", "text"), [("'a: b'", "a: b"), ('"a\\nb"', "a\nb"), ("''", ""), ("'null'", "null")]
    )
    def test_quotes_around_the_whole_are_yaml(self, run, written, text):
        assert load_config(run, [f"project={written}"]).project == text

    @pytest.mark.parametrize("written", ["null", "None", "none", "", "''"])
    def test_none_where_there_may_be_none(self, run, written):
        assert load_config(run, ["load_model_path=x", f"load_model_path={written}"]).load_model_path is None

    def test_null_is_no_text(self, run, error):
        assert "project (--set project=null): must be a valid string" in error(run, "project=null")


class TestNumbers:
    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("seed=1e3", 1000),
            ("seed=2.0", 2),
            ("seed='4'", 4),
            ("seed=010", 10),
            ('seed="1e3"', 1000),
            ("lr='1e-5'", 1e-5),
            ("lr=1", 1.0),
            ("bf16='true'", True),
            ("bf16=on", True),
            ("resume='auto'", "auto"),
            ("resume=no", False),
            ("max_train_samples=None", None),
            ("max_train_samples=", None),
            ("betas=['0.9', 1e-1]", (0.9, 0.1)),
            ("keep_best_checkpoints='true'", 1),
            ("keep_best_checkpoints=2.0", 2),
            ("coconut.epochs_per_stage=[1.0, '2', 3e0]", [1, 2, 3]),
            ("coconut.epochs_per_stage=2.0", 2),
            ("wandb.tags=[a, 1.0, 'b']", ["a", "1.0", "b"]),
        ],
    )
    def test_are_taken_in_every_form_that_means_one_thing(self, run, write, override, value):
        taken = read(run, override)
        assert (taken, type(taken)) == (value, type(value))
        key, _, text = override.partition("=")
        assert load_config(write(f"{key}: {text}\n", "file.yaml")) == load_config(run, [override])

    @pytest.mark.parametrize(
        "override",
        [
            "seed=2.5",
            "seed=12:30",
            "seed=.inf",
            "seed=9007199254740993.0",
            "seed=1e999",
            "bf16=1",
            "bf16='x'",
            "lr=1,0",
            "lr=",
            "lr=null",
            "resume=-1",
            "betas=[0.9, x]",
        ],
    )
    def test_no_other_form_is(self, run, error, override):
        assert f"{override.partition('=')[0]} (--set {override}): must be" in error(run, override)

    @pytest.mark.parametrize("override", ["lr=1e-3 # high", "lr=#1", "wandb.tags=[a] #b", "coconut={c_thought: 2} # x"])
    def test_a_command_line_has_no_comments(self, run, error, override):
        assert "would be lost as a comment" in error(run, override)


def test_an_anchor_may_serve_keys_of_one_type(write):
    config = load_config(write("batch_size: &n 4.0\neval_batch_size: *n\nproject: &t 007\nwandb: {group: *t}\n"))
    assert (config.batch_size, config.eval_batch_size, config.project, config.wandb.group) == (4, 4, "007", "007")


def test_what_other_readers_of_the_written_config_see(run):
    config = load_config(run, ["project=007", "prompt_date=2026-11-25", "wandb.tags=[on, 12:30]"])
    seen = yaml.safe_load(config.to_yaml())
    assert (seen["project"], seen["prompt_date"], seen["wandb"]["tags"]) == ("007", "2026-11-25", ["on", "12:30"])


class TestInterventions:
    def test_are_what_is_written_though_yaml_splits_them(self, write):
        run = write("eval_config:\n  interventions: [zero, only(3, mean), perturb( 0.30 )]\nval_path: v\n")
        expected = ["zero", "only(3, mean)", "perturb(0.3)"]
        assert load_config(run).eval_config.interventions == expected
        assert load_config(run, ["eval_config.interventions=[only(1,zero)]"]).eval_config.interventions == [
            "only(1, zero)"
        ]

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("[zeros]", "there is no intervention 'zeros': take some of zero, mean"),
            ("[zero, swap(1), zero]", "zero is listed twice"),
            ("[swap]", "intervention 'swap' is written otherwise: as swap(2)"),
            ("zero", "must be a list"),
            ("[[zero]]", "eval_config.interventions"),
        ],
    )
    def test_one_that_is_none_is_named(self, run, error, value, said):
        message = error(run, "val_path=v", f"eval_config.interventions={value}")
        assert said in message and "eval_config.interventions" in message
