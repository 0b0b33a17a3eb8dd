"""Cases worked by hand, by the rule of ScienceQA's own evaluation."""

from multicoco.data.example import Example
from multicoco.evaluation.metrics import official_predictions, official_scores


def question(subject: str, grade: str, has_text: bool, has_image: bool, question_id: str = "x") -> Example:
    groups = {"subject": subject, "grade": grade}
    groups |= {"has_text": str(has_text).lower(), "has_image": str(has_image).lower()}
    return Example(question_id, "Q?", (), ("a", "b", "a"), (), "a", 0, metric="scienceqa", groups=groups)


def test_by_subject_context_and_grade():
    examples = [
        question("natural science", "grade2", True, True),
        question("natural science", "grade6", True, False),
        question("natural science", "grade7", False, False),
        question("social science", "grade12", False, True),
        question("social science", "grade1", False, False),
    ]
    extracted = [0, 1, 0, 2, None]  # 2 has the right text at another place: the index counts
    scores = official_scores([{"extracted": index, "said": None} for index in extracted], examples)
    assert scores == {
        "scienceqa/average": 2 / 5,
        "scienceqa/average_n": 5,
        "scienceqa/natural": 2 / 3,
        "scienceqa/natural_n": 3,
        "scienceqa/social": 0,
        "scienceqa/social_n": 2,
        "scienceqa/has_text": 1 / 2,
        "scienceqa/has_text_n": 2,
        "scienceqa/has_image": 1 / 2,
        "scienceqa/has_image_n": 2,
        "scienceqa/no_context": 1 / 2,
        "scienceqa/no_context_n": 2,
        "scienceqa/grade_1_6": 1 / 3,
        "scienceqa/grade_1_6_n": 3,
        "scienceqa/grade_7_12": 1 / 2,
        "scienceqa/grade_7_12_n": 2,
    }


def test_by_topic():
    groups = [{"topic": "biology"}, {"topic": "us-history"}, {"topic": "biology"}, {}]
    context = {"has_text": "true", "has_image": "false"}
    examples = [
        Example(str(n), "Q?", (), ("a", "b"), (), "a", 0, metric="scienceqa", groups=of | context)
        for n, of in enumerate(groups)
    ]
    scores = official_scores([{"extracted": index, "said": None} for index in (0, 0, 1, 0)], examples)
    assert (scores["scienceqa/biology"], scores["scienceqa/biology_n"]) == (1 / 2, 2)
    assert (scores["scienceqa/us-history"], scores["scienceqa/us-history_n"]) == (1, 1)


def test_records_without_groups_have_the_average_alone():
    groups = {"has_text": "true", "has_image": "false"}
    example = Example("x", "Q?", (), ("a", "b"), (), "a", 0, metric="scienceqa", groups=groups)
    scores = official_scores([{"extracted": 0, "said": None}], [example])
    assert {key for key in scores if not key.endswith("_n")} == {"scienceqa/average", "scienceqa/has_text"}


def test_predictions_are_what_its_own_program_reads():
    examples = [question("natural science", "grade2", True, False, name) for name in ("7", "12")]
    examples.append(Example("13", "Q?", (), ("a", "b"), (), None, None, metric="scienceqa"))  # of a test set
    samples = [{"extracted": index, "said": None} for index in (2, None, 1)]
    assert official_predictions(samples, examples) == {"scienceqa": {"results": {"7": 2, "12": -1, "13": 1}}}


def test_a_test_record_is_in_no_score():
    example = Example("x", "Q?", (), ("a", "b"), (), None, None, metric="scienceqa")
    assert official_scores([{"extracted": 0, "said": None}], [example]) == {}
