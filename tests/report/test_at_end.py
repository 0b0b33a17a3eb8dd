"""Nothing that happens to a report happens to the run."""

import sys

import pytest
from pages import write_training

from multicoco.report.at_end import report_at_end


@pytest.fixture
def run(tmp_path):
    return write_training(tmp_path / "run")


def test_it_is_named(run, capsys):
    report_at_end(run)
    assert capsys.readouterr().out == f"report: {run}/report.html\n" and (run / "report.html").exists()


@pytest.mark.parametrize(
    ("module", "said"), [("matplotlib", "a report draws with matplotlib"), ("multicoco.report.page", "ModuleNotFound")]
)
def test_what_is_not_installed_is_said(run, capsys, monkeypatch, module, said):
    monkeypatch.setitem(sys.modules, module, None)
    report_at_end(run)
    assert f"no report was written: {said}" in capsys.readouterr().out


def test_a_failure_is_said(run, capsys, monkeypatch):
    monkeypatch.setattr("multicoco.report.page.write_report", lambda paths: 1 / 0)
    report_at_end(run)
    assert "no report was written: ZeroDivisionError" in capsys.readouterr().out
