"""Generated scenes: pictures and questions that need a known number of reasoning steps.

A scene is 3 x 3 tiles of nine colours; the mark on a tile has the colour of the tile to go to next. Written
in the official A-OKVQA release format, so it goes through the same loader as the real data; or as text alone, the
same scenes in sentences.
"""

import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice, pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from multicoco.errors import UserError
from multicoco.tasks.files import Key, check_sizes, digest, question_key, questions_in, to_json, write_folder
from multicoco.tasks.scene import COLOURS, SHAPES, Scene, digest_of, draw_scene

KINDS = {"tile": tuple(COLOURS), "shape": SHAPES}  # kind of question -> its answers
MAX_HOPS = len(COLOURS) - 1  # tiles on a path differ


@dataclass(frozen=True)
class Form:
    """How scenes are shown.

    Attributes:
        text: in sentences, not as pictures.
        distractors: tiles that have a dot in a corner, 0 to 9.
        tiles: of the scenes in turn; a picture has nine.
    """

    text: bool = False
    distractors: int = 0
    tiles: tuple[int, ...] = (len(COLOURS),)


@dataclass(frozen=True)
class Question:
    """A question about a scene; its answer is one of the choices.

    Attributes:
        passed: the tiles that have to be looked at, one in each step.
    """

    text: str
    choices: list[str]
    passed: list[str]
    steps: list[str]
    answer: str

    def official(self) -> dict[str, Any]:
        """As the content keys of an A-OKVQA record."""
        return {
            "question": self.text,
            "choices": self.choices,
            "correct_choice_idx": self.choices.index(self.answer),
            "direct_answers": [self.answer] * 10,
            "difficult_direct_answer": False,
            "rationales": [" ".join(self.steps)],
        }

    def about(self, scene: Scene) -> dict[str, Any]:
        """As the content keys of a record of text. A step quotes what the question says of a tile."""
        facts = scene.facts()
        steps = [facts[tile] for tile in self.passed]
        question = f"{scene.describe()} {self.text}"
        return {"question": question, "choices": self.choices, "steps": steps, "answer": self.answer}


def make_question(
    rng: random.Random, kind: str, answer: str, answer_index: int, tiles: Sequence[str], path: list[str]
) -> Question:
    """The question about a path through these tiles."""
    times = "1 time" if len(path) == 2 else f"{len(path) - 1} times"
    question = f"Start at the {path[0]} tile and follow the marks {times}."
    steps = [f"From {tile} go to {following}." for tile, following in pairwise(path)]
    if kind == "tile":
        question += " Which tile do you reach?"
        # Tiles on the path come first, so that knowing which tiles are on it does not give the answer.
        off_path = [tile for tile in COLOURS if tile in tiles and tile not in path]
        absent = [tile for tile in COLOURS if tile not in tiles]
        wrong = rng.sample(path[1:-1], len(path) - 2)
        for others in (off_path, absent):  # a small scene may not have three other tiles
            wrong += rng.sample(others, min(3, len(others)))
        wrong = wrong[:3]
    else:
        question += " Which shape is on the tile you reach?"
        steps.append(f"The shape on {path[-1]} is {answer}.")
        wrong = [shape for shape in SHAPES if shape != answer]
    choices = rng.sample(wrong, 3)
    choices.insert(answer_index, answer)
    return Question(question, choices, path[: len(steps)], steps, answer)


def balanced_plan(rng: random.Random, size: int, kinds: Sequence[str]) -> list[tuple[str, str, int]]:
    """(kind, answer, index of the answer) of each record of a split, in random order.

    The counts of kinds, of the answers of a kind and of indices (also within a kind) differ by at most 1.
    """
    questions = []
    for number, kind in enumerate(kinds):
        n_questions = len(range(number, size, len(kinds)))
        words = rng.sample(KINDS[kind], len(KINDS[kind]))
        answers = list(islice(cycle(words), n_questions))
        rng.shuffle(answers)
        questions += [(kind, answer) for answer in answers]
    plan = [(kind, answer, i % 4) for i, (kind, answer) in enumerate(questions)]
    rng.shuffle(plan)
    return plan


def render_scenes(
    out_dir: Path,
    train: int = 8000,
    val: int = 500,
    test: int = 100,
    seed: int = 0,
    kinds: Sequence[str] = ("tile", "shape"),
    hops: int = 3,
    form: Form = Form(),
    apart_from: Sequence[Path] = (),
) -> dict[str, int]:
    """Makes a data set of scenes: `aokvqa_v1p0_{split}.json`, `{split}2017/{image_id:012d}.png`, README.md.

    As text it is `scenes_{split}.json` and README.md, of the same scenes and questions as the pictures of the same
    arguments; sentences tell of shapes only where a question may be about one. The same arguments give the same bytes.
    No scene occurs twice, within a split or across splits. The pictures' test records carry no answer and no
    rationales, as in the official release.

    Args:
        out_dir: as in `write_folder`.
        train, val, test: records per split; any may be 0, but not all.
        seed: of everything drawn.
        kinds: "tile" (which tile do you reach) and "shape" (which shape is on it), in equal parts.
        hops: reasoning steps of every question, 1 to 8, fewer than tiles.
        form: pictures or text, how many tiles, and what distracts.
        apart_from: folders of scenes in the same form, none of which is to occur, with dots or without.

    Returns:
        The number of records per split.

    Raises:
        UserError: bad arguments, or `out_dir` holds something else or cannot be written.
    """
    sizes = {"train": train, "val": val, "test": test}
    check_sizes("scenes", sizes)
    if not kinds or len(set(kinds)) != len(kinds) or not set(kinds) <= set(KINDS):
        raise UserError(f"scenes: kinds must be different ones of {', '.join(KINDS)}, not {list(kinds)}")
    if not 1 <= hops <= MAX_HOPS:
        raise UserError(f"scenes: hops must be 1 to {MAX_HOPS}, not {hops}")
    if form.tiles != Form.tiles and not form.text:
        raise UserError("scenes: a picture has nine tiles: leave tiles out, or ask for text")
    if not all(hops < n_tiles <= len(COLOURS) for n_tiles in form.tiles):
        raise UserError(f"scenes: tiles must be {hops + 1} to {len(COLOURS)} for {hops} hops, not {list(form.tiles)}")
    if not 0 <= form.distractors <= min(form.tiles):
        raise UserError(f"scenes: distractors must be 0 to {min(form.tiles)}, not {form.distractors}")
    avoided = _scenes_in(apart_from, form)
    arguments = {**sizes, "seed": seed, "kinds": list(kinds), "hops": hops}
    how: dict[str, Any] = {"text": form.text, "distractors": form.distractors, "apart_from": digest(avoided)}
    if form.tiles != Form.tiles:
        how["tiles"] = list(form.tiles)
    if not _tells_shapes(kinds, form):
        how["shapes"] = False

    def write(folder: Path) -> None:
        example = None
        drawn = _draw(random.Random(seed), sizes, kinds, hops, form, avoided)
        for split, size in sizes.items():
            records = []
            for image_id, scene, question in islice(drawn, size):
                if form.text:
                    record = {"id": f"scene-{image_id}", **question.about(scene)}
                    shown, steps = f"scene: {scene.describe()}", record["steps"]
                else:
                    (folder / f"{split}2017").mkdir(exist_ok=True)
                    scene.render().save(folder / _image_path(split, image_id))
                    ids = {"split": split, "image_id": image_id, "question_id": f"scene-{image_id}"}
                    record = ids | question.official()
                    shown, steps = f"image: `{_image_path(split, image_id)}`", question.steps
                example = example or _as_read(shown, question, steps)
                if split == "test" and not form.text:
                    for key in ("correct_choice_idx", "direct_answers", "rationales"):
                        del record[key]
                records.append(record)
            (folder / _records_path(split, form)).write_text(to_json(records), encoding="utf-8")
        (folder / "README.md").write_text(_readme(sizes, example or "", form), encoding="utf-8")

    write_folder(out_dir, arguments | how, _files(sizes, form), write)
    return sizes


def _draw(
    rng: random.Random,
    sizes: dict[str, int],
    kinds: Sequence[str],
    hops: int,
    form: Form,
    avoided: set[Hashable],
) -> Iterator[tuple[int, Scene, Question]]:
    """Number, scene and question of every record, split after split."""
    seen: set[Scene] = set()
    image_ids, tells_shapes = count(1), _tells_shapes(kinds, form)
    for size in sizes.values():
        for kind, answer, answer_index in balanced_plan(rng, size, kinds):
            image_id = next(image_ids)
            n_tiles = form.tiles[image_id % len(form.tiles)]
            drawing = kind, answer, hops, form.distractors, n_tiles, tells_shapes
            scene, path = draw_scene(rng, *drawing)
            while scene in seen or (avoided and _key(scene, form) in avoided):
                scene, path = draw_scene(rng, *drawing)
            seen.add(scene)
            yield image_id, scene, make_question(rng, kind, answer, answer_index, scene.tiles, path)


def _tells_shapes(kinds: Sequence[str], form: Form) -> bool:
    """A picture cannot leave them out; sentences do where no question is about one."""
    return not form.text or "shape" in kinds


def _key(scene: Scene, form: Form) -> Hashable:
    """The same for scenes that differ at most in their dots."""
    return _facts(question_key(f"{scene.describe()} ")) if form.text else digest_of(scene.render())


def _facts(key: Key) -> Key:
    return frozenset(fact for fact in key if fact.startswith("On "))


def _scenes_in(folders: Sequence[Path], form: Form) -> set[Hashable]:
    if form.text:
        return {_facts(key) for key in questions_in(folders)}
    found: set[Hashable] = set()
    for folder in folders:
        pictures = sorted(folder.rglob("*.png"))
        if not pictures:
            raise UserError(f"{folder}: holds no pictures to keep apart from: name a folder of scenes")
        for path in pictures:
            try:
                with Image.open(path) as image:
                    found.add(digest_of(image))
            except OSError as error:
                raise UserError(f"{path}: cannot be read as a picture ({error})") from error
    return found


def _image_path(split: str, image_id: int) -> str:
    return f"{split}2017/{image_id:012d}.png"


def _records_path(split: str, form: Form) -> str:
    return f"scenes_{split}.json" if form.text else f"aokvqa_v1p0_{split}.json"


def _files(sizes: dict[str, int], form: Form) -> list[str]:
    image_ids = count(1)
    files = ["README.md"]
    for split, size in sizes.items():
        pictures = [] if form.text else [_image_path(split, image_id) for image_id in islice(image_ids, size)]
        files += [_records_path(split, form), *pictures]
    return files


def _as_read(shown: str, question: Question, steps: list[str]) -> str:
    return f"""- {shown}
- question: {question.text}
- choices: {", ".join(question.choices)}
- steps: {" ".join(steps)}
- answer: {question.answer}
"""


def _readme(sizes: dict[str, int], example: str, form: Form) -> str:
    counts = ", ".join(f"{size} {split}" for split, size in sizes.items())
    source = "of text" if form.text else "in the format of the A-OKVQA release"
    test = "" if form.text else " Test records carry no answer."
    dots = " A dot in a corner means nothing." if form.distractors else ""
    small = "" if form.tiles == Form.tiles else f" Here {' or '.join(map(str, form.tiles))} of the tiles are described."
    return f"""# Generated scenes

Records ({counts}) {source}, written by MultiCoCo
(`multicoco/tasks/scenes.py`); the arguments are in `dataset.json`.{test}

A picture has 3 x 3 tiles of nine colours. The mark on a tile (disc, square, triangle or cross) has the
colour of the tile to go to next.{dots}{small}

To check one by eye:

{example}"""
