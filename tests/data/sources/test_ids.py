"""Ids that records have of their own, and those that they share."""

from itertools import product

from multicoco.data.sources.ids import numbered, numbers_of


def test_names_become_different_whatever_they_are_and_the_first_of_each_stays():
    for names in product(("a", "a#2", "a#2#2", "b"), repeat=4):
        unique = [numbered(name, number) for name, number in zip(names, numbers_of(names), strict=True)]
        assert len(set(unique)) == len(names)
        assert unique[0] == names[0]
        assert numbers_of(names[:3]) == numbers_of(names)[:3]  # what comes later changes no id
