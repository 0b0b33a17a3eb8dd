import json
from itertools import takewhile

from homes import REPO

from multicoco.cli import main
from multicoco.planning.tables import GPUS, INTERNVL3, internvl3, tables

PAGE = (REPO / "docs" / "planning.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| InternVL3")]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_documents_rows_are_what_the_command_prints():
    printed = tables(["InternVL3-1B"]).splitlines()[2:]
    assert [cells(line) for line in printed] == [cells(line) for line in ROWS[: len(GPUS)]]


def test_the_document_has_every_model_on_every_cluster():
    shown = [(cells(line)[0].split()[0], int(cells(line)[1])) for line in ROWS]
    assert shown == [(name, gpus) for name in INTERNVL3 for gpus in GPUS]


def test_the_documents_example_is_what_the_command_prints(tmp_path, monkeypatch, capsys):
    command, *below = PAGE.split("    $ multicoco ")[1].splitlines()
    example = takewhile(lambda line: not line or line.startswith("    "), below)
    internvl3("InternVL3-1B").save_pretrained(tmp_path / "models" / "InternVL3-1B")
    monkeypatch.chdir(tmp_path)
    plan, config, *options = command.split()
    assert main([plan, str(REPO / config), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    shown = [line.strip() for line in example if line.strip() and line.strip() != "..."]
    assert len(shown) > 10 and set(shown) <= set(printed)


def test_the_documents_comparison_is_the_measured_one():
    measured = json.loads((REPO / "benchmarks" / "results" / "plan_memory.json").read_text())["rows"]
    shown = [cells(line) for line in PAGE.splitlines() if line.startswith("| zero")]
    assert shown == [
        [row["case"], f"{row['predicted_mib']:.0f}", f"{row['measured_mib']:.0f}", f"{row['ratio']:.2f}"]
        for row in measured
    ]
