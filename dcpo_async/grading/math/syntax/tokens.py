r"""Splits an answer, in LaTeX or plain text, into tokens; what is only typography is gone afterwards."""

import re
import unicodedata
from typing import Literal, NamedTuple

Kind = Literal["number", "letter", "word", "command", "mark"]


class Token(NamedTuple):
    r"""One token.

    Attributes:
        kind: number (digits), letter (a variable), word (text, such as a unit), command (\sqrt, also for a plain
            `sqrt`) or mark (an operator, bracket or relation, one character each).
        text: number without separators, its repeating part in parentheses; command without the backslash.
        is_spaced: whether a space stands before it.
    """

    kind: Kind
    text: str
    is_spaced: bool = False


FUNCTIONS = frozenset(
    {
        "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln",
        "lg", "exp", "gcd", "lcm", "max", "min",
    }
)  # fmt: skip
SHORT_WORDS = frozenset(
    {
        "cm", "mm", "km", "nm", "ft", "in", "kg", "mg", "lb", "lbs", "oz", "mi", "yd", "ml", "hr", "hrs", "min", "sec",
        "mph", "kph", "pct", "am", "pm", "usd", "deg", "sq", "and", "or", "yes", "no", "odd",
    }
)  # fmt: skip
"""Short words that would else be read as products of variables."""

_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "×": "×", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "⁄": "/", "∕": "/",
        "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "≤": "≤", "≥": "≥", "≠": "≠", "≈": "≈", "°": "°", "∪": "∪",
        "∈": "∈", "±": "±", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}", "ℝ": r"\mathbb{R}", "，": ", ", "、": ", ", "；": ";", "：": ":",
        "（": "(", "）": ")", "［": "[", "］": "]", "’": "'", "′": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
        "\u200b": "", "\ufeff": "", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ",
        "μ": r"\mu ", "σ": r"\sigma ", "φ": r"\phi ", "ω": r"\omega ", "∅": r"\emptyset ", "∠": r"\angle ",
        "△": r"\triangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∘": r"\circ ",
        "∧": r"\land ", "∨": r"\lor ", "…": r"\ldots ", "⋯": r"\ldots ", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
        "“": '"', "”": '"',
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_MARK_COMMANDS = {
    "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥", "geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<",
    "gt": ">", "in": "∈", "cup": "∪", "times": "×", "cdot": "*", "ast": "*", "div": "/", "pm": "±", "mp": "∓",
    "mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "approx": "≈", "degree": "°", "lbrace": r"\{",
    "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "{": r"\{", "}": r"\}", "|": "‖", "%": "%", "#": "#", "$": "$",
    "langle": "(", "rangle": ")", "colon": ":", "to": "→", "prime": "'", "circ": "∘", "notin": "∉", "equiv": "≡",
    "subset": "⊂", "subseteq": "⊆", "supset": "⊃", "supseteq": "⊇", "cap": "∩", "perp": "⊥", "parallel": "∥",
    "sim": "∼", "cong": "≅", "nmid": "∤", "ldots": "…", "cdots": "…", "dots": "…", "leqq": "≤", "geqq": "≥",
}  # fmt: skip
_WORD_COMMANDS = {"land": "and", "wedge": "and", "lor": "or", "vee": "or"}
_REWRITES = (
    (re.compile(r"\\not\s*(?:\\in(?![A-Za-z])|∈)"), "∉"),
    (re.compile(r"\\not\s*(?:\\equiv(?![A-Za-z])|≡)"), "≢"),
    (re.compile(r"\\not\s*(?:=|\\eq(?![A-Za-z]))"), "≠"),
    (re.compile(r"\\equiv(?![A-Za-z])"), "≡"),
    (re.compile(r"\.{3,}"), r"\\ldots "),
    (re.compile(r"\+\s*/\s*-"), "±"),
    (re.compile(r"\\(?:boldsymbol|bm)\s*(?=\{[A-Za-z]\})"), r"\\mathbf"),
    (re.compile(r"(?<=[\w)}])\*\*(?=[\w({\\-])"), "^"),
    (re.compile(r"\\(?:left|right)\s*\.|\\(?:left|right|[bB]igg?[lr]?|middle)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits|hfill|boldsymbol|rm|bf|underline)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:scriptstyle|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:text)?color\s*\{[A-Za-z]+\}"), ""),
    (re.compile(r"\\[dtc](?=(?:frac|binom)(?![A-Za-z]))"), r"\\"),
    # Separators of thousands.
    (re.compile(r"(?<=\d),\s*\\!\s*(?=\d{3})"), ","),
    (re.compile(r"(?<=\d)\{,\}(?=\d{3})"), ","),
    (re.compile(r"(?<=\d)\{,\}(?=\d{1,2}(?!\d))"), "."),
    (re.compile(r"\{([:;])\}"), r"\1"),
    (re.compile(r"(?<=\d)\\,(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<![\d.])(\d{1,3})((?: \d{3})+)(?![\d/.])"), lambda match: match[0].replace(" ", "")),
    (re.compile(r"(?<!\\)(?:\\[!()\[\]]|\$)|&nbsp;|[*_]{2,}"), ""),
    (re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\[hv]space\{[^{}]*\}|\\\n"), " "),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))"), "°"),
    (re.compile(r"\\mathbb\s*\{?\s*R\s*\}?|\\(?:Reals|reals)(?![A-Za-z])"), r"\\Real "),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"<="), "≤"),
    (re.compile(r">="), "≥"),
    (re.compile(r"!="), "≠"),
)
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar|dot)\s*\{?[0-9]+\}?)"
    r"|(?P<number>[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)"
    r"|\\(?P<wrapper>text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf|cal|bb)|operatorname\*?|mbox|emph)\s*"
    r"\{(?P<wrapped>[^{}]*)\}"
    r"|\\(?P<command>[A-Za-z]+|.)"
    r"|(?P<letters>[^\W\d_]+)"
    r"|(?P<mark>.)",
    re.DOTALL,
)
_COMPOUND_UNIT = re.compile(r"[A-Za-z]+(?:/[A-Za-z]+)+")
_PLAIN_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")


def clean(answer: str) -> str:
    r"""The answer without what LaTeX only typesets: dollar signs, spacing, sizes, \left and \right, full-width signs.

    Example: clean(r"$\left(1,\dfrac{1}{2}\right)$.") is r"(1,\frac{1}{2})".
    """
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", answer)
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return " ".join(text.split()).rstrip(" .。,;:\\")


def tokenize(cleaned: str, has_thousands: bool = True) -> list[Token]:
    r"""Tokens of a text that `clean` has returned; linear in its length.

    Args:
        has_thousands: read "1,000" as one number, not as two of a list.

    Example: tokenize("2x") is [Token("number", "2"), Token("letter", "x")].
    """
    tokens: list[Token] = []
    is_spaced, place = False, 0
    while place < len(cleaned):
        match = _TOKEN.match(cleaned, place)
        assert match is not None, "the last alternative takes any character"
        if match["number"] and not has_thousands:
            match = _PLAIN_NUMBER.match(cleaned, place) or match
            tokens.append(Token("number", match[0], is_spaced))
        elif match["letters"] and len(match[0]) > 2 and is_spaced and tokens and tokens[-1].kind == "number":
            # "3 men" counts men; written without the space it would be a product.
            tokens.append(Token("word", match[0], is_spaced))
        elif match["space"] is None:
            tokens += _tokens_of(match, is_spaced, has_thousands)
        is_spaced = match.lastgroup == "space"
        place = match.end()
    return tokens


def _tokens_of(match: re.Match[str], is_spaced: bool, has_thousands: bool) -> list[Token]:
    if match["number"]:
        return [Token("number", match["number"].replace(",", ""), is_spaced)]
    if match["repeating"]:
        whole, _, digits = match["repeating"].partition("\\")
        return [Token("number", f"{whole or '0'}({re.sub(r'[^0-9]', '', digits)})", is_spaced)]
    if match["wrapped"] is not None:
        return _unwrapped(match["wrapper"], match["wrapped"], is_spaced, has_thousands)
    if match["command"]:
        name = match["command"]
        if name in _WORD_COMMANDS:
            return [Token("word", _WORD_COMMANDS[name], True)]
        mark = _MARK_COMMANDS.get(name)
        return [Token("mark", mark, is_spaced) if mark else Token("command", name, is_spaced)]
    if match["letters"]:
        return _of_letters(match["letters"], is_spaced)
    return [Token("mark", match["mark"], is_spaced)]


def _unwrapped(wrapper: str, wrapped: str, is_spaced: bool, has_thousands: bool) -> list[Token]:
    r"""What \text{} and its kin hold: words, or, where they hold digits or brackets, an answer of its own."""
    inner = wrapped.strip()
    is_math = wrapper.startswith(("math", "operatorname"))
    if is_math and (
        inner in FUNCTIONS or (inner.isalpha() and len(inner) == 1 and (wrapper != "mathrm" or inner in "deiπ"))
    ):
        letters = _of_letters(inner, is_spaced)
        return [Token("command", "mathbf", is_spaced), *letters] if wrapper == "mathbf" else letters
    if _COMPOUND_UNIT.fullmatch(inner):
        return [Token("word", inner, True)]
    if re.search(r"[^A-Za-z\s.'-]", inner):
        return tokenize(clean(inner), has_thousands)
    return [Token("word", word, True) for word in inner.rstrip(".").split()]


def _of_letters(run: str, is_spaced: bool) -> list[Token]:
    """A plain run of letters: a function or constant by name, a word, or a product of variables."""
    lower = run.lower()
    if run in FUNCTIONS and run != "min":
        return [Token("command", run, is_spaced)]
    if lower in ("pi", "sqrt", "infinity", "infty"):
        return [Token("command", "infty" if lower == "infinity" else lower, is_spaced)]
    if len(run) > 3 or lower in SHORT_WORDS or not run.isascii():
        return [Token("word", run, is_spaced)]
    return [Token("letter", letter, is_spaced and place == 0) for place, letter in enumerate(run)]


def is_mark(token: Token, *marks: str) -> bool:
    """Whether it is one of these operators, brackets or relations."""
    return token.kind == "mark" and token.text in marks
