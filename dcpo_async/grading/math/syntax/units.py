"""Units as people write them, each in one spelling."""

import re

UNITS = {
    "%": "%", "percent": "%", "percentage": "%", "pct": "%",
    "°": "°", "degree": "°", "deg": "°", "$": "dollar", "usd": "dollar", "buck": "dollar",
    "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee",
    "cm": "centimeter", "mm": "millimeter", "km": "kilometer", "m": "meter", "metre": "meter", "ft": "foot",
    "feet": "foot", "in": "inch", "inche": "inch", "mi": "mile", "yd": "yard", "kg": "kilogram", "g": "gram",
    "lb": "pound", "oz": "ounce", "h": "hour", "hr": "hour", "min": "minute", "s": "second", "sec": "second",
    "mph": "mile per hour", "kph": "kilometer per hour", "sq": "square", "squared": "square", "cubed": "cubic",
    "l": "liter", "ml": "milliliter",
}  # fmt: skip
NUMBER_WORDS = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
OPERATION_WORDS = frozenset(
    {
        "squared",
        "cubed",
        "factorial",
        "over",
        "plus",
        "minus",
        "times",
        "divided",
        "half",
        "halves",
        "thirds",
        "percentile",
    }
)
UNIT_LETTERS = frozenset("mgshL")
"""Letters that are units where a space stands before them."""


def normal_unit(unit: str) -> str:
    """One spelling for each unit: singular, without abbreviations, squares and cubes in words.

    Example: normal_unit("sq cm") and normal_unit("cm^2") are "square centimeter".
    """
    text = unit.casefold().replace("{", " ").replace("}", " ").replace("/", " per ").replace("per cent", "percent")
    text = re.sub(r"([^\s^]+)\s*\^\s*2", r"square \1", text)
    text = re.sub(r"([^\s^]+)\s*\^\s*3", r"cubic \1", text)
    words = [_normal_unit_word(word) for word in text.replace("(", " ").replace(")", " ").split()]
    return " ".join(words)


def _normal_unit_word(word: str) -> str:
    singular = word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
    return UNITS.get(word, UNITS.get(singular, singular))
