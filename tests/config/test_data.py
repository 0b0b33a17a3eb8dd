import datetime

import pytest

from multicoco.config import RunConfig, load_config


class TestPromptDate:
    @pytest.mark.parametrize("written", ["2026-11-25", "'2026-11-25'"])
    def test_is_text_however_it_is_written(self, write, written):
        assert load_config(write(f"prompt_date: {written}\n")).prompt_date == "2026-11-25"
        assert load_config(write(), [f"prompt_date={written}"]).prompt_date == "2026-11-25"

    def test_may_be_pythons(self, minimal):
        assert RunConfig(**minimal, prompt_date=datetime.date(2026, 1, 2)).prompt_date == "2026-01-02"

    @pytest.mark.parametrize("written", ["2026-13-01", "20261125", "25.11.2026", "today", "2026-11-25 10:00"])
    def test_is_a_day_that_there_is(self, run, error, written):
        assert f"prompt_date (--set prompt_date={written}): " in error(run, f"prompt_date={written}")
