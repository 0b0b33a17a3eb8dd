from pathlib import Path

from multicoco.config import config_reference
from multicoco.config.evaluation import EvalConfig
from multicoco.methods.coconut_keys import CoconutKeys


def test_the_page_in_the_docs_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text() == config_reference(), "run: python -m multicoco.config.reference > docs/config.md"


def test_it_has_every_key_in_the_order_of_the_written_config():
    rows = [line.split("`")[1] for line in config_reference().splitlines() if line.startswith("| `")]
    assert [key.partition(".")[0] for key in rows if key.startswith(("generation.", "coconut.", "eval_config."))] == [
        *["generation"] * 5,
        *["coconut"] * len(CoconutKeys.model_fields),
        *["eval_config"] * len(EvalConfig.model_fields),
    ]
    assert {"mode", "method", "coconut.stage_lr", "prompt_date", "self_check", "deepspeed"} <= set(rows)
