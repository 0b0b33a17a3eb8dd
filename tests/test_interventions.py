import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.interventions import choose_donors, order_of, parse, resize_thoughts, split_specs

PLAIN = ["zero", "mean", "mean_by_step", "noise", "first", "permute", "transplant", "mask", "other_input"]
ALL = [*PLAIN, "perturb(0.3)", "swap(2)", "cut(1)", "extend(9)"]


@pytest.mark.parametrize(
    "spec",
    [
        *(*ALL, "other_input(blank)", "other_input(reverse)", "only(3, mean)", "only(1, swap(2))"),
        *("extend(1000000)", "perturb(0.1234567)"),
    ],
)
def test_a_spec_is_what_it_is_written_as(spec):
    parsed = parse(spec)
    assert str(parsed) == spec and parse(str(parsed)) == parsed
    assert parse(f" {spec.replace(', ', ' ,')} ") == parsed
    assert not set(parsed.file_name) & set(" (),/")


def test_file_names_differ():
    specs = [*ALL, "perturb(3)", "perturb(0.03)", "only(3, mean)", "only(3, perturb(0.3))", "other_input(blank)"]
    assert len({parse(spec).file_name for spec in specs}) == len(specs)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("zeros", "no intervention 'zeros': take some of zero, mean"),
        ("zero(1)", "as zero"),
        ("perturb", "as perturb(0.3)"),
        ("perturb(nan)", "as perturb(0.3)"),
        ("swap(0)", "as swap(2)"),
        ("cut(-1)", "as cut(1)"),
        ("cut(1.5)", "as cut(1)"),
        ("only(0, mean)", "as only(3, mean)"),
        ("only(1, mask)", "as only(3, mean)"),
        ("only(1, zeros)", "no intervention 'zeros'"),
        ("only(1)", "no intervention ''"),
        ("other_input(green)", "as other_input"),
        ("zero)", "no intervention 'zero)'"),
    ],
)
def test_what_is_none_is_refused(spec, said):
    with pytest.raises(ValueError) as caught:
        parse(spec)
    assert said in str(caught.value)


def test_what_yaml_has_split_is_one_again():
    assert split_specs(["zero", "only(3", "mean)", "only(1", "perturb(2))"]) == [
        "zero",
        "only(3, mean)",
        "only(1, perturb(2))",
    ]
    assert split_specs([]) == [] and split_specs(["zero"]) == ["zero"]


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        ("cut(0)", [1, 2, 3]),
        ("cut(1)", [1, 2, 9, 3]),
        ("cut(2)", [1, 2, 9, 9, 3]),
        ("cut(5)", [1, 2, 9, 9, 3]),
        ("extend(1)", [1, 2, 9, 9, 3]),
        ("extend(4)", [1, 2, 9, 9, 9, 9, 3]),
        ("zero", [1, 2, 9, 9, 3]),
    ],
)
def test_thoughts_go_and_come_at_their_end(spec, row):
    assert resize_thoughts([1, 2, 9, 9, 3], 9, parse(spec)) == row
    assert resize_thoughts([1, 2, 3], 9, parse(spec)) == [1, 2, 3]


@given(n=st.integers(2, 9), bits=st.integers(0, 2**64 - 1))
def test_an_order_is_another_one(n, bits):
    order = order_of(n, bits)
    assert sorted(order) == list(range(n)) != order and order == order_of(n, bits)


questions = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from([1, 2]), st.sampled_from(["a", "b", "c", None])),
    min_size=1,
    max_size=12,
    unique_by=lambda q: q[0],
)


@given(questions=questions, seed=st.integers(0, 5), data=st.data())
def test_donors_fit_and_do_not_depend_on_the_order_of_the_questions(questions, seed, data):
    def chosen(questions):
        ids, groups, answers = zip(*questions, strict=True)
        ids = [str(i) for i in ids]
        possible = {i: frozenset("ab") for i in range(len(ids))}
        donors = choose_donors(seed, ids, groups, answers, possible)
        for i, donor in enumerate(donors):
            fitting = [
                j for j in range(len(ids)) if j != i and groups[j] == groups[i] and answers[j] not in (None, answers[i])
            ]
            assert (donor in fitting) if fitting else donor is None
            if any(answers[j] in ("a", "b") for j in fitting):
                assert answers[donor] in ("a", "b")
        return {ids[i]: None if donor is None else ids[donor] for i, donor in enumerate(donors)}

    assert chosen(questions) == chosen(data.draw(st.permutations(questions)))


def test_all_give_once_where_all_may_give():
    ids = [str(i) for i in range(20)]
    donors = choose_donors(1, ids, [0] * 20)
    assert sorted(donors) == list(range(20)) and donors != choose_donors(2, ids, [0] * 20)
