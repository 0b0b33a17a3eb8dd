from dataclasses import replace

import pytest
from homes import REPO

from multicoco.planning import scale
from multicoco.planning.scale import GPUS, MODELS, AtScale, rows_of, table


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


PAGE = (REPO / "docs" / "scale.md").read_text()
ROWS = [cells(line) for line in PAGE.splitlines() if line.startswith("| InternVL3")]


@pytest.fixture(scope="module")
def computed():
    return rows_of(MODELS[0])


@pytest.fixture(scope="module")
def small(computed) -> list[AtScale]:
    return [found for _, _, found in computed]


def test_the_documents_rows_are_what_the_command_prints(computed, monkeypatch):
    monkeypatch.setattr(scale, "rows_of", lambda name: computed)
    assert [cells(line) for line in table(MODELS[:1]).splitlines()[2:]] == ROWS[: len(GPUS)]
    assert [(row[0], int(row[1])) for row in ROWS] == [(name, n) for name in MODELS for n in GPUS]


def test_a_step_is_its_parts_and_more_gpus_fail_more_often(small):
    for found in small:
        assert found.step == pytest.approx(sum(found.parts.values())) and min(found.parts.values()) >= 0
        assert found.start == pytest.approx(sum(found.starting.values()))
    assert [found.between_failures for found in small] == sorted((x.between_failures for x in small), reverse=True)
    assert [found.lost for found in small] == sorted(found.lost for found in small)
    assert small[0].parts["launching"] == 0 < small[-1].parts["launching"]


def test_the_bottleneck_is_what_costs_most_beside_computing(small):
    found = replace(small[0], step=1.0, parts={"computing": 0.7, "other GPUs": 0.2, "AdamW": 0.1}, lost=0.15)
    assert found.bottleneck == ("other GPUs", 0.2)
    assert replace(found, lost=0.3).bottleneck == ("failures", 0.3)
    assert replace(found, parts={"computing": 0.97, "AdamW": 0.03}, lost=0.01).bottleneck is None


def test_saving_more_or_less_often_costs_more(small):
    for found in small:
        between = 3600 * found.between_failures

        def lost(interval, found=found, between=between):
            return found.blocked / interval + interval / 2 / between

        best = lost(found.interval)
        assert all(lost(found.interval * factor) >= best for factor in (1.5, 3))
        assert found.interval == found.save or all(lost(found.interval * factor) >= best for factor in (0.3, 0.7))
