"""The names of what there is more than one of: training methods, model families, sources of examples,
official scores.

A name leads to a class by its place, "module:Class". So nothing is imported before it is used, and this file, which all
others may import, imports none of them. Another package adds its own with entry points of the same form:

    [project.entry-points."multicoco.methods"]
    mine = "my_package.my_method:Mine"
"""

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from multicoco.errors import UserError

Kind = Literal["methods", "families", "sources", "metrics"]

# a family or a source that is asked first stands first: the first one that takes a model or a record has it
_BUILT_IN: dict[Kind, dict[str, str]] = {
    "methods": {
        "vanilla": "multicoco.methods.written:Vanilla",
        "cot": "multicoco.methods.written:Cot",
        "coconut": "multicoco.methods.coconut:Coconut",
        "no_thoughts": "multicoco.methods.no_thoughts:NoThoughts",
        "no_markers": "multicoco.methods.no_thoughts:NoMarkers",
        "icot": "multicoco.methods.icot:ICoT",
        "c_mtp": "multicoco.methods.c_mtp:CMTP",
        "codi": "multicoco.methods.codi:CODI",
        "sim_cot": "multicoco.methods.sim_cot:SimCoT",
        "codi_sim_cot": "multicoco.methods.codi_sim_cot:CODISimCoT",
    },
    "families": {
        "internvl": "multicoco.models.families.internvl:InternVL",
        "idefics3": "multicoco.models.families.idefics3:Idefics3",
        "llava_onevision": "multicoco.models.families.llava_onevision:LlavaOneVision",
        "qwen2_vl": "multicoco.models.families.qwen2_vl:Qwen2VL",
        "qwen2_5_vl": "multicoco.models.families.qwen2_5_vl:Qwen25VL",
        "qwen3_vl": "multicoco.models.families.qwen3_vl:Qwen3VL",
        "text": "multicoco.models.families.text:Text",
        "generic": "multicoco.models.families.generic:Generic",
    },
    "sources": {
        "m3cot": "multicoco.data.sources.m3cot:M3CoT",
        "aokvqa": "multicoco.data.sources.aokvqa:AOKVQA",
        "gsm8k": "multicoco.data.sources.gsm8k:GSM8K",
        "scienceqa": "multicoco.data.sources.scienceqa:ScienceQA",
        "messages": "multicoco.data.sources.messages:Messages",
        "records": "multicoco.data.sources.records:Records",
    },
    "metrics": {
        "aokvqa": "multicoco.evaluation.metrics.aokvqa:AOKVQA",
        "gsm8k": "multicoco.evaluation.metrics.gsm8k:GSM8K",
        "scienceqa": "multicoco.evaluation.metrics.scienceqa:ScienceQA",
    },
}


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    """By name; other packages' first, so that they are asked before the built-in ones."""
    group = f"multicoco.{kind}"
    built_in = [EntryPoint(name, place, group) for name, place in _BUILT_IN[kind].items()]
    found: dict[str, EntryPoint] = {}
    for entry in (*entry_points(group=group), *built_in):
        if entry.name in found and found[entry.name].value != entry.value:
            raise UserError(
                f"{group}: {entry.name!r} is both {found[entry.name].value} and {entry.value}: uninstall one of the "
                "packages, or rename its entry point"
            )
        found[entry.name] = entry
    return found


def names(kind: Kind) -> list[str]:
    """All names of a kind, in the order in which they are asked.

    Raises:
        UserError: two packages use one name.
    """
    return list(_entries(kind))


def check_name(kind: Kind, name: str) -> None:
    """Imports nothing.

    Raises:
        UserError: there is no such name.
    """
    entries = _entries(kind)
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f", did you mean {near[0]}?" if near else f": there are {', '.join(entries)}"
        raise UserError(f"{name!r} is none of the {kind}{hint}")


def load(kind: Kind, name: str) -> Any:
    """The class of a name.

    Raises:
        UserError: there is no such name, or its package cannot be imported.
    """
    check_name(kind, name)
    entries = _entries(kind)
    try:
        return entries[name].load()
    except (ImportError, AttributeError) as error:
        if name in _BUILT_IN[kind]:
            raise
        raise UserError(
            f"{name!r} of multicoco.{kind}, {entries[name].value}, cannot be imported ({error}): reinstall or "
            "uninstall its package"
        ) from error


def load_all(kind: Kind) -> dict[str, Any]:
    """Every class of a kind by its name, in the order in which they are asked."""
    return {name: load(kind, name) for name in names(kind)}
