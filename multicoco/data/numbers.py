"""Numbers as they are written in answers: "1,234", "$18", "18.0", "50%", "-5", "1/2", "1e3"."""

import re
from fractions import Fraction
from typing import NamedTuple

_NUMBER = re.compile(
    r"""
    (?<! [\w.,:/^√-] )
    (?P<sign> [-\u2212+]? )  (?: [$£€¥₹]\s? )?  (?P<inner> [-\u2212+]? )
    (?P<digits> [0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)? | [0-9]+(?:\.[0-9]+)? | \.[0-9]+ )
    (?P<exponent> [eE][-+]?[0-9]{1,2} )?
    (?P<below> /[0-9]+ )?
    (?P<percent> \s?(?: \\?% | per\s?cent\b ) )?
    (?! [\w/^!:%] | [.,][0-9] )
    """,
    re.VERBOSE,
)
_OPERATOR = re.compile(r"[-\u2212\u2013+\u00d7\u00f7<>]\s+$")  # "a - 5" is not -5
_CHANGES_THE_VALUE = re.compile(
    r"""\b(?:(?:hundred|thousand|million|billion|trillion|dozen|pair|third|quarter)s?|hal(?:f|ves)|double|triple|twice
    |minus|plus|negative|times|squared|cubed|root|power|than|least|most|over|under|above|below|between)\b""",
    re.VERBOSE | re.IGNORECASE,
)


class Number(NamedTuple):
    """A number and whether it is followed by a percent sign; `written` without commas and currency."""

    value: Fraction
    percent: bool
    written: str

    def equals(self, other: "Number") -> bool:
        """Numerically; a percent sign that only one has is a unit, unless the number may be a share (up to 1)."""
        return self.value == other.value and (self.percent == other.percent or abs(self.value) > 1)


def single_number(text: str) -> Number | None:
    """The one number in a text, whatever its unit; None if there is none or are several, or words change its value."""
    found = {}
    for match in _NUMBER.finditer(text):
        number = None if _OPERATOR.search(text[: match.start()]) else _number(match)
        if number is None:
            return None
        found[number[:2]] = number
    rest = _NUMBER.sub(" ", text)
    if len(found) != 1 or any(character.isnumeric() for character in rest) or _CHANGES_THE_VALUE.search(rest):
        return None
    return next(iter(found.values()))


def _number(match: re.Match[str]) -> Number | None:
    if match["sign"] and match["inner"]:
        return None
    sign = "-" if (match["sign"] or match["inner"]) in ("-", "\u2212") else ""
    digits = f"{sign}{match['digits'].replace(',', '')}{match['exponent'] or ''}"
    try:
        value = Fraction(digits) / Fraction((match["below"] or "/1")[1:])
    except (ValueError, ZeroDivisionError):  # more digits than int() takes
        return None
    written = str(value) if value.denominator == 1 else digits + (match["below"] or "")
    return Number(value, bool(match["percent"]), written + ("%" if match["percent"] else ""))
