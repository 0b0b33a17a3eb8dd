import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from multicoco.data.sources import load_examples
from multicoco.errors import UserError
from multicoco.tasks import scenes
from multicoco.tasks.scene import COLOURS, SHAPES
from multicoco.tasks.scenes import KINDS, Form, render_scenes

NAMES = {rgb: name for name, rgb in COLOURS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out_dir = tmp_path_factory.mktemp("scenes") / "made" / "here"
    assert render_scenes(out_dir, train=240, val=61, test=17, seed=3) == {"train": 240, "val": 61, "test": 17}
    return out_dir


def records(folder: Path, split: str) -> list[dict]:
    return json.loads((folder / f"aokvqa_v1p0_{split}.json").read_text(encoding="utf-8"))


def image_path(folder: Path, record: dict) -> Path:
    return folder / f"{record['split']}2017" / f"{record['image_id']:012d}.png"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def shape_of(tile: Image.Image) -> str:
    """The shape of the mark on a tile, from how wide it is at the top, in the middle and at the bottom."""
    ground = tile.getpixel((0, 0))
    rows = [sum(tile.getpixel((x, y)) != ground for x in range(28)) for y in range(28)]
    widths = [width for width in rows if width]
    top, bottom, widest = widths[0], widths[-1], max(widths)
    if top == bottom == widest:
        return "square"
    if top < bottom == widest:
        return "triangle"
    return "cross" if len(set(widths)) == 2 else "disc"


def read_picture(path: Path) -> dict[str, tuple[str, str]]:
    """Tile colour -> colour and shape of its mark, from the pixels alone."""
    scene = {}
    with Image.open(path) as image:
        assert image.mode == "RGB" and image.size == (84, 84)
        for x in (0, 28, 56):
            for y in (0, 28, 56):
                tile = image.crop((x, y, x + 28, y + 28))
                dot = tile.crop((22, 2, 26, 6)).getcolors()
                assert len(dot) == 1
                tile.paste(tile.getpixel((0, 0)), (22, 2, 26, 6))
                assert len(tile.getcolors()) == 2
                scene[NAMES[tile.getpixel((0, 0))]] = NAMES[tile.getpixel((13, 13))], shape_of(tile)
    return scene


def walk(folder: Path, record: dict) -> tuple[list[str], list[str], str]:
    """Path, steps and answer of a question, read off the picture."""
    scene = read_picture(image_path(folder, record))
    assert set(scene) == set(COLOURS)
    start, n_follows, asked = re.fullmatch(
        r"Start at the (\w+) tile and follow the marks (\d) times?\. "
        r"Which (tile do you reach|shape is on the tile you reach)\?",
        record["question"],
    ).groups()
    path = [start]
    for _ in range(int(n_follows)):
        path.append(scene[path[-1]][0])
    steps = [f"From {a} go to {b}." for a, b in pairwise(path)]
    if asked.startswith("tile"):
        return path, steps, path[-1]
    shape = scene[path[-1]][1]
    return path, [*steps, f"The shape on {path[-1]} is {shape}."], shape


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_pixels_give_the_steps_and_the_answer(folder, split):
    for record in records(folder, split):
        path, steps, answer = walk(folder, record)
        assert len(set(path)) == len(path)
        assert len(steps) == 3
        assert record["rationales"] == [" ".join(steps)]
        assert record["direct_answers"] == [answer] * 10
        assert record["choices"][record["correct_choice_idx"]] == answer
        assert len(set(record["choices"])) == 4
        if answer in SHAPES:
            assert set(record["choices"]) == set(SHAPES)
        else:
            assert path[0] not in record["choices"]
            assert set(path[1:]) <= set(record["choices"])


def test_test_records_hold_no_answer_but_one_of_the_choices_is_right(folder):
    for record in records(folder, "test"):
        assert set(record) == {
            "split", "image_id", "question_id", "question", "choices", "difficult_direct_answer"
        }  # fmt: skip
        assert walk(folder, record)[2] in record["choices"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_answers_and_their_places_are_balanced(folder, split):
    def spread(counts: Counter, values) -> int:
        return max(counts[v] for v in values) - min(counts[v] for v in values)

    answers = [(r["direct_answers"][0], r["correct_choice_idx"]) for r in records(folder, split)]
    assert spread(Counter(index for _, index in answers), range(4)) <= 1
    for words in KINDS.values():
        of_kind = [(answer, index) for answer, index in answers if answer in words]
        assert abs(len(of_kind) - len(answers) / 2) <= 1
        assert spread(Counter(answer for answer, _ in of_kind), words) <= 1
        assert spread(Counter(index for _, index in of_kind), range(4)) <= 1


def test_a_word_does_not_give_away_its_place(folder):
    answers = [(r["direct_answers"][0], r["correct_choice_idx"]) for r in records(folder, "train")]
    for word in (*COLOURS, *SHAPES):
        assert len({index for answer, index in answers if answer == word}) > 1


def test_no_scene_or_id_occurs_twice(folder):
    every = [record for split in ("train", "val", "test") for record in records(folder, split)]
    assert len({record["image_id"] for record in every}) == len(every)
    assert len({record["question_id"] for record in every}) == len(every)
    assert len({image_path(folder, record).read_bytes() for record in every}) == len(every)


def test_a_scene_drawn_again_is_thrown_away(tmp_path, monkeypatch):
    def twice(*args):
        drawn = draw(*args)
        queue.extend([drawn, drawn])
        return queue.pop(0)

    draw, queue = scenes.draw_scene, []
    monkeypatch.setattr(scenes, "draw_scene", twice)
    render_scenes(tmp_path / "s", train=6, val=6, test=0, kinds=["shape"])
    pictures = [
        image_path(tmp_path / "s", r).read_bytes() for s in ("train", "val") for r in records(tmp_path / "s", s)
    ]
    assert len(set(pictures)) == 12


@pytest.mark.parametrize("hops", range(1, 9))
@pytest.mark.parametrize("kind", ["tile", "shape"])
def test_every_question_takes_the_hops_asked_for(tmp_path, kind, hops):
    render_scenes(tmp_path / "s", train=12, val=1, test=0, hops=hops, kinds=[kind])
    for record in records(tmp_path / "s", "train"):
        path, steps, answer = walk(tmp_path / "s", record)
        assert len(steps) == hops
        assert len(set(path)) == len(path)
        assert answer in KINDS[kind] and record["rationales"] == [" ".join(steps)]
        if kind == "tile":
            assert len(set(record["choices"]) & set(path[1:-1])) == min(3, hops - 1)
            assert path[0] not in record["choices"] and len(set(record["choices"])) == 4


@pytest.mark.parametrize("kind", ["tile", "shape"])
@pytest.mark.parametrize("hops", [1, 3])
def test_small_scenes_in_sentences_hold_what_is_asked(tmp_path, kind, hops):
    form = Form(text=True, tiles=(4, 6, 9))
    render_scenes(tmp_path / "s", train=48, val=0, test=0, hops=hops, kinds=[kind], form=form)
    sizes = Counter()
    for record in json.loads((tmp_path / "s" / "scenes_train.json").read_text()):
        said = re.findall(r"On (\w+) is (?:an? )?(\w+)( \w+)?\.", record["question"])
        marks = {tile: (colour, shape.strip()) for tile, colour, shape in said}
        assert all(bool(shape) == (kind == "shape") for _, shape in marks.values())  # told where one is asked about
        assert {colour for colour, _ in marks.values()} <= set(marks)  # no mark leads out of the scene
        path = [re.search(r"Start at the (\w+) tile", record["question"])[1]]
        for _ in range(hops - (kind == "shape")):
            path.append(marks[path[-1]][0])
        answer = path[-1] if kind == "tile" else marks[path[-1]][1]
        assert [step.split()[1] for step in record["steps"]] == path[:hops]
        assert all(step in record["question"] for step in record["steps"])
        assert record["answer"] == answer and answer in record["choices"] and len(set(record["choices"])) == 4
        if kind == "tile":  # tiles that are not there only where too few are
            others = len(set(marks) - {path[0]})
            assert len(set(record["choices"]) & set(marks)) == min(4, others)
        sizes[len(marks)] += 1
    assert sizes == {4: 16, 6: 16, 9: 16}


def dots(path: Path) -> int:
    """How many tiles have one."""
    with Image.open(path) as image:
        corners = [(x, y) for x in (0, 28, 56) for y in (0, 28, 56)]
        return sum(image.getpixel((x + 23, y + 3)) != image.getpixel((x, y)) for x, y in corners)


def test_distractors_are_dots_that_change_nothing_else(tmp_path):
    render_scenes(tmp_path / "s", train=12, val=1, test=0, form=Form(distractors=4))
    for record in records(tmp_path / "s", "train"):
        assert dots(image_path(tmp_path / "s", record)) == 4
        _, steps, answer = walk(tmp_path / "s", record)
        assert record["rationales"] == [" ".join(steps)] and record["direct_answers"][0] == answer


def test_without_distractors_there_are_no_dots(folder):
    assert not any(dots(image_path(folder, record)) for record in records(folder, "val"))


@pytest.mark.parametrize("distractors", [0, 3])
def test_the_text_twin_says_what_the_pictures_show(tmp_path, distractors):
    sizes = {"train": 20, "val": 5, "test": 3}
    render_scenes(tmp_path / "pictures", **sizes, form=Form(distractors=distractors))
    render_scenes(tmp_path / "text", **sizes, form=Form(text=True, distractors=distractors))
    for split in sizes:
        twins = json.loads((tmp_path / "text" / f"scenes_{split}.json").read_text())
        for picture, text in zip(records(tmp_path / "pictures", split), twins, strict=True):
            _, steps, answer = walk(tmp_path / "pictures", picture)
            marks = read_picture(image_path(tmp_path / "pictures", picture))
            facts = re.findall(r"On (\w+) is an? (\w+) (\w+)\.", text["question"])
            sentences = {sentence.split()[1]: sentence for sentence in re.findall(r"On [^.]*\.", text["question"])}
            assert {tile: mark for tile, *mark in facts} == {tile: list(mark) for tile, mark in marks.items()}
            assert len(re.findall(r"In the corner of \w+ is \w+\.", text["question"])) == distractors
            assert text["question"].endswith(f". {picture['question']}")
            assert (text["answer"], text["choices"]) == (answer, picture["choices"])
            assert text["steps"] == [sentences[step.split()[1 if len(step.split()) == 5 else 3]] for step in steps]
    assert "image" not in (tmp_path / "text" / "README.md").read_text()
    examples = load_examples(tmp_path / "text" / "scenes_train.json", tmp_path)
    assert all(example.answer in example.choices and not example.images for example in examples)


@pytest.mark.parametrize("text", [False, True], ids=["pictures", "text"])
def test_a_set_shares_no_scene_with_those_it_is_to_be_apart_from(tmp_path, text):
    def scenes_of(name: str) -> set:
        """Dots set aside."""
        if text:
            twins = json.loads((tmp_path / name / "scenes_train.json").read_text())
            return {frozenset(re.findall(r"On [^.]*", record["question"])) for record in twins}
        return {frozenset(read_picture(path).items()) for path in (tmp_path / name).rglob("*.png")}

    def render(name: str, distractors: int, *apart_from: str) -> None:
        apart = [tmp_path / other for other in apart_from]
        render_scenes(tmp_path / name, 6, 0, 0, form=Form(text, distractors), apart_from=apart)

    render("a", 0)
    render("dots", 3)
    assert scenes_of("a") & scenes_of("dots")  # drawn with one seed
    render("b", 0, "a")
    render("c", 3, "a", "b")
    assert len(scenes_of("a") | scenes_of("b") | scenes_of("c")) == 18


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        render_scenes(tmp_path / name, train=8, val=4, test=2, seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    pictures = [{v for k, v in tree(tmp_path / name).items() if k.endswith("png")} for name in ("a", "c")]
    assert not pictures[0] & pictures[1]


def test_the_readme_shows_a_record_of_the_data_set(folder):
    readme = (folder / "README.md").read_text(encoding="utf-8")
    record = records(folder, "train")[0]
    for text in (f"train2017/{record['image_id']:012d}.png", record["question"], record["rationales"][0]):
        assert text in readme
    assert f"answer: {record['direct_answers'][0]}\n" in readme


def test_a_data_set_already_there_is_left_as_it_is(tmp_path):
    out_dir = tmp_path / "s"
    summary = render_scenes(out_dir, train=4, val=2, test=0)
    times = {p: p.stat().st_mtime_ns for p in out_dir.rglob("*")}
    assert render_scenes(out_dir, train=4, val=2, test=0) == summary
    assert {p: p.stat().st_mtime_ns for p in out_dir.rglob("*")} == times


@pytest.mark.parametrize("change", ["other arguments", "a file more", "a file less", "something else"])
def test_a_folder_that_holds_anything_else_is_refused_and_kept(tmp_path, change):
    out_dir, arguments = tmp_path / "s", {"train": 4, "val": 2, "test": 0}
    if change == "something else":
        out_dir.mkdir()
        (out_dir / "thesis.tex").write_text("precious")
    else:
        render_scenes(out_dir, **arguments)
    if change == "other arguments":
        arguments["seed"] = 5
    elif change == "a file more":
        (out_dir / "train2017" / "mine.png").write_bytes(b"x")
    elif change == "a file less":
        (out_dir / "train2017" / "000000000001.png").unlink()
    before = tree(out_dir)
    with pytest.raises(UserError, match="not empty"):
        render_scenes(out_dir, **arguments)
    assert tree(out_dir) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "s").mkdir()
    render_scenes(tmp_path / "s", train=1, val=1, test=0)
    assert len(tree(tmp_path / "s")) == 7


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "_readme", stop)
    with pytest.raises(KeyboardInterrupt):
        render_scenes(tmp_path / "s", train=2, val=2, test=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kinds": ["tile", "size"]}, "size"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["tile", "tile"]}, "kinds"),
        ({"hops": 0}, "hops"),
        ({"hops": 9}, "hops"),
        ({"train": 0, "val": 0, "test": 0}, "train"),
        ({"form": Form(distractors=10)}, "distractors"),
        ({"form": Form(text=True, distractors=6, tiles=(5, 9))}, "distractors must be 0 to 5"),
        ({"form": Form(tiles=(4,))}, "picture"),
        ({"form": Form(text=True, tiles=(3, 9))}, "tiles must be 4 to 9 for 3 hops"),
        ({"form": Form(text=True, tiles=(10,))}, "tiles"),
        ({"apart_from": [Path("nowhere")]}, "nowhere"),
        ({"form": Form(text=True), "apart_from": [Path("nowhere")]}, "nowhere"),
        ({"test": -1}, "test"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, named):
    with pytest.raises(UserError, match=named):
        render_scenes(tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "s").write_text("a file")
    for out_dir in (tmp_path / "s", tmp_path / "s" / "below"):
        with pytest.raises(UserError, match=re.escape(str(out_dir))):
            render_scenes(out_dir, train=1, val=1, test=0)
    assert (tmp_path / "s").read_text() == "a file"
