from importlib.metadata import EntryPoint

import pytest

from multicoco import registry
from multicoco.errors import UserError

KINDS = ("methods", "families", "sources")


@pytest.fixture
def others(monkeypatch):
    """Entry points of other packages, in the registry as long as the test runs."""

    def install(*entries: tuple[str, str]):
        found = [EntryPoint(name, place, "multicoco.methods") for name, place in entries]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "multicoco.methods" else [])
        registry._entries.cache_clear()

    yield install
    registry._entries.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_name_leads_to_a_class(kind):
    classes = registry.load_all(kind)
    assert list(classes) == registry.names(kind) and all(isinstance(found, type) for found in classes.values())


def test_families_and_sources_that_take_anything_come_last():
    assert registry.names("families")[-2:] == ["text", "generic"] and registry.names("sources")[-1] == "records"


def test_another_packages_names_come_first(others):
    others(("mine", "fractions:Fraction"))
    assert registry.names("methods")[0] == "mine"
    assert registry.load("methods", "mine").__name__ == "Fraction"


def test_two_packages_cannot_share_a_name(others):
    others(("coconut", "fractions:Fraction"))
    with pytest.raises(UserError, match=r"'coconut' is both fractions:Fraction and multicoco\.methods"):
        registry.names("methods")
    others(("mine", "fractions:Fraction"), ("mine", "fractions:Fraction"))  # one package, found twice on the path
    assert "mine" in registry.names("methods")


@pytest.mark.parametrize("place", ["nowhere:Thing", "fractions:Thing"])
def test_a_package_that_cannot_be_imported_is_named(others, place):
    others(("mine", place))
    with pytest.raises(UserError, match=f"'mine' of multicoco.methods, {place}, cannot be imported"):
        registry.load("methods", "mine")


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(UserError, match=r"'coconuts' is none of the methods, did you mean coconut\?"):
        registry.load("methods", "coconuts")
    with pytest.raises(UserError, match="there are vanilla, cot, coconut"):
        registry.load("methods", "zzz")
