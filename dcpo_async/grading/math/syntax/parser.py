r"""Reads an expression from tokens."""

from collections.abc import Sequence
from fractions import Fraction

from dcpo_async.grading.math.syntax.expressions import (
    ARROW,
    BOLD,
    CALLED,
    Apply,
    Expression,
    Number,
    Symbol,
    UnreadableError,
    composite,
    negative,
    signed_product,
)
from dcpo_async.grading.math.syntax.tokens import FUNCTIONS, Token, is_mark

MAX_DEPTH = 40
MAX_DIGITS = 4000
"""Longer numbers are no answers, and cost quadratic time to read."""
GREEK = frozenset(
    {
        "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
        "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "ell",
        "Gamma", "Delta", "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi", "Omega",
    }
)  # fmt: skip
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
_ROUNDED = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil")}
_END = Token("mark", "")
_MARKS_OVER = {
    "vec": ARROW, "overrightarrow": ARROW, "mathbf": BOLD, "hat": "\u0302", "widehat": "\u0302",
    "overline": "\u0305", "bar": "\u0305", "tilde": "\u0303", "dot": "\u0307",
}  # fmt: skip
"""Marks over a name, as the name has them behind it: an arrow, heavy print, a hat, a line, a tilde, a dot."""
_SHAPES = {"angle": "∠", "triangle": "△", "measuredangle": "∠"}
_NO_FACTORS = frozenset({"rfloor", "rceil", "over", "choose"})
_STACKED = {"over": "/", "choose": "binom"}
_MAX_SIGNS = 3
KNOWN_COMMANDS = FUNCTIONS | GREEK | _MARKS_OVER.keys() | _SHAPES.keys() | _STACKED.keys() | {
    "frac", "binom", "sqrt", "pi", "infty", "lfloor", "rfloor", "lceil", "rceil", "Real", "emptyset",
}  # fmt: skip


def parse_expression(tokens: Sequence[Token]) -> Expression:
    r"""The expression that all of the tokens make up.

    Multiplication may be left out; a number before a proper fraction is a mixed number; `\frac12` takes a digit each.

    Raises UnreadableError, also beyond MAX_DEPTH.

    Example: the tokens of r"2\frac{1}{2}" give Number(Fraction(5, 2)).
    """
    parser = _Parser(tokens)
    expression = parser.sum()
    parser.expect_end()
    return expression


class _Parser:
    """Recursive descent: sum, product, power, primary."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = list(tokens)
        self._place = 0
        self._depth = 0
        self._open_bars = 0

    # ---- tokens

    def _next(self) -> Token:
        return self._tokens[self._place] if self._place < len(self._tokens) else _END

    def _after_next(self, ahead: int = 1) -> Token:
        place = self._place + ahead
        return self._tokens[place] if place < len(self._tokens) else _END

    def _take(self) -> Token:
        token = self._next()
        if token is _END:
            raise UnreadableError("it ends too early")
        self._place += 1
        return token

    def _takes(self, *marks: str) -> str | None:
        """The mark that comes next, if it is one of these; it is consumed."""
        token = self._next()
        if token.kind == "mark" and token.text in marks:
            self._place += 1
            return token.text
        return None

    def _expect(self, mark: str) -> None:
        if self._takes(mark) is None:
            raise UnreadableError(f"expected {mark!r}, found {self._next().text!r}")

    def expect_end(self) -> None:
        if self._next() is not _END:
            raise UnreadableError(f"cannot go on at {self._next().text!r}")

    # ---- grammar

    def sum(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError(f"nested deeper than {MAX_DEPTH}")
        terms = [self._signed_product(self._sign())]
        while sign := self._sign():
            terms.append(self._signed_product(sign))
        result = terms[0] if len(terms) == 1 else Apply("+", tuple(terms))
        if self._next().kind == "command" and (operator := _STACKED.get(self._next().text)):
            self._take()
            result = Apply(operator, (result, self.sum()))
        self._depth -= 1
        return result

    def _sign(self) -> str | None:
        """The sign that comes next; of several in a row, as in 3 + -2, what they amount to."""
        sign = self._takes("+", "-")
        for _ in range(_MAX_SIGNS):
            following = self._takes("+", "-") if sign else None
            if following is None:
                return sign
            sign = "+" if sign == following else "-"
        raise UnreadableError(f"more than {_MAX_SIGNS} signs in a row")

    def _signed_product(self, sign: str | None) -> Expression:
        product = self._product()
        return negative(product) if sign == "-" else product

    def _product(self) -> Expression:
        result = self._factor()
        while True:
            if mark := self._takes("*", "×"):
                result = signed_product(mark, result, self._signed_factor())
            elif self._takes("∘"):
                result = composite(result, self._factor())
            elif self._takes("/"):
                result = Apply("/", (result, self._signed_factor()))
            elif self._starts_factor():
                result = Apply("*", (result, self._factor()))
            else:
                return result

    def _signed_factor(self) -> Expression:
        sign = self._sign()
        factor = self._factor()
        return negative(factor) if sign == "-" else factor

    def _starts_factor(self) -> bool:
        """Whether a factor follows without a sign; two numbers side by side are no product."""
        token, previous = self._next(), self._tokens[self._place - 1]
        if token.kind == "number":
            is_odd_order = previous.kind == "number" or (previous.kind == "letter" and previous.text != "i")
            return not is_odd_order and previous.text not in ("!", "%", "°")
        if token.kind == "mark":
            return token.text in ("(", "{", "[") or (token.text == "|" and not self._open_bars)
        return token.kind == "letter" or (token.kind == "command" and token.text not in _NO_FACTORS)

    def _factor(self) -> Expression:
        base = self._postfixed(self._primary())
        if self._takes("^"):
            base = Apply("^", (base, self._exponent()))
        return self._postfixed(base)

    def _postfixed(self, operand: Expression) -> Expression:
        num_marks = 0
        while mark := self._takes("!", "%", "°"):
            if (num_marks := num_marks + 1) > MAX_DEPTH:
                raise UnreadableError(f"more than {MAX_DEPTH} signs in a row")
            if mark == "!" and self._takes("!"):
                mark = "!!"
            operand = Apply(mark, (operand,))
        return operand

    def _exponent(self) -> Expression:
        if self._takes("{"):
            return self._group_rest("{")
        sign = self._takes("+", "-")
        exponent = self._primary()
        return negative(exponent) if sign == "-" else exponent

    def _group_rest(self, opening: str) -> Expression:
        inner = self.sum()
        self._expect(_CLOSING[opening])
        return inner

    def _primary(self) -> Expression:
        token = self._take()
        if token.kind == "number":
            return self._number(token.text)
        if token.kind == "letter":
            return self._symbol(token.text)
        if token.kind == "command":
            return self._command(token.text)
        if token.text == "|":
            return self._absolute()
        if token.kind == "mark" and token.text in _CLOSING:
            return self._group_rest(token.text)
        raise UnreadableError(f"{token.text!r} begins no expression")

    def _absolute(self) -> Expression:
        self._open_bars += 1
        inner = self.sum()
        self._open_bars -= 1
        self._expect("|")
        return Apply("abs", (inner,))

    def _symbol(self, name: str) -> Expression:
        if self._takes("_"):
            name += "_" + self._subscript()
        while self._takes("'"):
            name += "'"
        if name in CALLED and is_mark(self._next(), "(") and not self._next().is_spaced:
            return Apply(f"{name}()", self._function_arguments())
        return Symbol(name)

    def _subscript(self) -> str:
        if not self._takes("{"):
            return self._take().text
        parts = []
        while not self._takes("}"):
            if self._next() is _END:
                raise UnreadableError("a subscript has no end")
            parts.append(self._take().text)
        return "".join(parts)

    def _number(self, text: str) -> Expression:
        value = _value_of(text)
        if text.isdecimal() and (fraction := self._mixed_part()) is not None:
            return Number(value + fraction)
        return Number(value)

    def _mixed_part(self) -> Fraction | None:
        r"""The fraction of a mixed number, `\frac{2}{3}` or ` 2/3`, where it is proper."""
        start, token = self._place, self._next()
        if token[:2] == ("command", "frac"):
            self._take()
            parts = [self._digits_argument(), self._digits_argument()]
        elif token.kind == "number" and token.is_spaced and self._after_next()[:2] == ("mark", "/"):
            parts = [token.text, self._after_next(2).text]
            self._place += 3
        else:
            return None
        numerator, denominator = ((int(part) if part.isdecimal() and len(part) < 20 else -1) for part in parts)
        if 0 < numerator < denominator:
            return Fraction(numerator, denominator)
        self._place = start
        return None

    def _digits_argument(self) -> str:
        """A braced or single digit argument that consists of digits; else an empty text."""
        if not self._takes("{"):
            return self._take_digit() or ""
        digits = self._take().text if self._next().kind == "number" else ""
        return digits if self._takes("}") else ""

    def _take_digit(self) -> str | None:
        token = self._next()
        if token.kind != "number":
            return None
        self._place += 1
        if len(token.text) > 1:
            self._place -= 1
            self._tokens[self._place] = Token("number", token.text[1:])
        return token.text[0]

    # ---- commands

    def _command(self, name: str) -> Expression:
        if name in ("pi", "infty"):
            return Symbol(name)
        if name in GREEK:
            return self._symbol(name)
        if name in FUNCTIONS:
            return self._function(name)
        if name in _ROUNDED:
            return self._rounded(*_ROUNDED[name])
        match name:
            case "frac":
                return Apply("/", (self._argument(), self._argument()))
            case "binom":
                return Apply("binom", (self._argument(), self._argument()))
            case "sqrt":
                return self._root()
        if name in _MARKS_OVER:
            return self._marked(name)
        if name in _SHAPES:
            return self._shape(_SHAPES[name])
        raise UnreadableError(f"unknown command {name}")

    def _marked(self, command: str) -> Expression:
        r"""A name with a mark over it, as \vec{a} or \overline{AB}; of other expressions the mark is an operator."""
        start = self._place
        if not self._takes("{"):
            return Symbol(self._take().text + _MARKS_OVER[command])
        letters = []
        while self._next().kind in ("letter", "number"):
            letters.append(self._take().text)
        if not letters or not self._takes("}"):
            self._place = start
            return Apply(command, (self._argument(),))
        if command == "overline" and len(letters) == 2 and "".join(letters).isupper():
            letters.sort()  # a segment has no direction
        return Symbol("".join(letters) + _MARKS_OVER[command])

    def _shape(self, sign: str) -> Expression:
        """An angle or a triangle by the names of its points, in their order; an angle may be read from either end."""
        points = ""
        is_braced = self._takes("{") is not None
        while self._next().kind in ("letter", "word", "number"):
            points += self._take().text
        if is_braced:
            self._expect("}")
        if not points:
            raise UnreadableError("an angle without its points")
        return Symbol(sign + (min(points, points[::-1]) if sign == "∠" and len(points) == 3 else points))

    def _argument(self) -> Expression:
        """An argument of a command: a group, or one token, of a number its first digit."""
        if self._takes("{"):
            return self._group_rest("{")
        digit = self._take_digit()
        return Number(Fraction(int(digit))) if digit else self._primary()

    def _root(self) -> Expression:
        index: Expression = Number(Fraction(2))
        if self._takes("["):
            index = self._group_rest("[")
        radicand = self._group_rest("{") if self._takes("{") else self._primary()
        return Apply("root", (index, radicand))

    def _rounded(self, closing: str, operator: str) -> Expression:
        inner = self.sum()
        if self._take()[:2] != ("command", closing):
            raise UnreadableError(f"no {closing}")
        return Apply(operator, (inner,))

    def _function(self, name: str) -> Expression:
        base: Expression | None = None
        power: Expression | None = None
        while mark := self._takes("_", "^"):
            if (base if mark == "_" else power) is not None:
                raise UnreadableError(f"{name} has two of {mark}")
            if mark == "_":
                base = self._argument()
            else:
                power = self._exponent()
        if power == negative(Number(Fraction(1))) and f"arc{name}" in FUNCTIONS:
            name, power = f"arc{name}", None
        arguments = self._function_arguments()
        if name in ("log", "lg"):
            arguments = (base or Number(Fraction(10)), *arguments)
            name = "log"
        elif base is not None:
            raise UnreadableError(f"{name} has no base")
        result = Apply(name, arguments)
        return result if power is None else Apply("^", (result, power))

    def _function_arguments(self) -> tuple[Expression, ...]:
        r"""What stands in parentheses, or, as in `\sin 2x`, the product up to the next sign or function."""
        for opening in ("(", "{"):
            if self._takes(opening):
                arguments = [self.sum()]
                while self._takes(","):
                    arguments.append(self.sum())
                self._expect(_CLOSING[opening])
                return tuple(arguments)
        argument = self._factor()
        while self._starts_factor() and not self._is_function(self._next()):
            argument = Apply("*", (argument, self._factor()))
        return (argument,)

    def _is_function(self, token: Token) -> bool:
        return token.kind == "command" and token.text in FUNCTIONS


def _value_of(text: str) -> Fraction:
    """A decimal, with a repeating part in parentheses where it has one."""
    if len(text) > MAX_DIGITS:
        raise UnreadableError(f"a number of {len(text)} digits")
    finite, _, repeating = text.rstrip(")").partition("(")
    value = Fraction(finite.rstrip(".") or "0")
    if repeating:
        decimals = len(finite.partition(".")[2])
        value += Fraction(int(repeating), (10 ** len(repeating) - 1) * 10**decimals)
    return value
