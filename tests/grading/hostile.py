"""Input made to hang, crash or fill the grader, and answers that a slip of a pen spoilt."""

import random
from collections.abc import Callable

from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st


def nested(opening: str, inside: str, closing: str, depth: int) -> str:
    return opening * depth + inside + closing * depth


# Below 1,000 characters an answer is read; above, it is dismissed by its length.
SHORT = {
    "power tower": "10^{10^{10}}",
    "power tower of twos": "2^{2^{2^{2^{2^{2}}}}}",
    "deep power tower": nested("9^{", "9", "}", 240),
    "power tower without braces": "9" + "^9" * 450,
    "power of a power": nested("(", "7", ")^{99999}", 90),
    "negative power tower": "10^{-10^{10}}",
    "power of a symbol": "x^{x^{x^{x^{10^{9}}}}}",
    "fractional power": "(10^{10^6})^{\\frac{1}{10^6}}",
    "huge base and exponent": "12345678901234567890^{12345678901234567890}",
    "power of two of gigabytes": "2^{10^{11}}",
    "scientific notation": r"1.5 \times 10^{999999999999}",
    "tiny scientific notation": r"1.5 \times 10^{-999999999999}",
    "float exponent": "1e999999999",
    "factorial chain": "9!!!!!!",
    "long factorial chain": "9" + "!" * 900,
    "factorial of a billion": "(10^9)!",
    "factorial of factorials": "((((9!)!)!)!)!",
    "ratio of factorials": r"\frac{(10^9)!}{(10^9-1)!}",
    "huge binomial": r"\binom{10^9}{5*10^8}",
    "nested binomials": nested(r"\binom{", "9", "}{4}", 90),
    "huge polynomial": "(x+1)^{10^6}",
    "product of polynomials": "(x+1)(y+1)(z+1)(a+b+c+d)" * 30,
    "power of a long sum": "(a+b+c+d+e+f+g+h)^{99}",
    "quotient of powers": r"\frac{x^{100000}-1}{x-1}",
    "polynomial of many terms": "+".join(f"{n}x^{{{n}}}" for n in range(1, 95)),
    "many symbols": "+".join(f"x_{{{n}}}y_{{{n}}}" for n in range(60)),
    "endless sum": r"\sum_{n=1}^{\infty} \frac{1}{n^{1.0001}}",
    "long sum": r"\sum_{n=1}^{10^{10}} \frac{1}{n^2+1}",
    "nested sums": nested(r"\sum_{k=1}^{10^9}", "k", "", 50),
    "long product": r"\prod_{n=1}^{10^9} n",
    "hard integral": r"\int_0^\infty e^{-x^{x^x}} \sin(x^x)\,dx",
    "nested integrals": nested(r"\int_0^1", "x^x", "dx", 60),
    "hard limit": r"\lim_{x \to 0} \frac{\sin(\tan x)-\tan(\sin x)}{\arcsin(\arctan x)-\arctan(\arcsin x)}",
    "derivative": r"\frac{d^{100}}{dx^{100}} e^{x^x}",
    "huge angle": r"\sin(10^{10^6})",
    "huge angle in degrees": r"\cos(10^{10^{10}})^\circ",
    "pole of the tangent": r"\tan(\pi/2)",
    "cancellation": r"\frac{10^{-40}}{\sin(\pi)}",
    "division by zero": r"\frac{1}{0}",
    "nought by nought": r"\frac{0}{0}",
    "nought to the nought": "0^0",
    "nought to a negative power": "0^{-1}",
    "remainder by zero": r"5 \bmod 0",
    "logarithm of zero": r"\ln 0",
    "logarithm to base one": r"\log_1 5",
    "root of degree zero": r"\sqrt[0]{5}",
    "root of huge degree": r"\sqrt[10^{10}]{10^{10^{10}}}",
    "nested roots": nested(r"\sqrt{", "2", "}", 130),
    "nested logarithms": nested(r"\ln ", "10^{99}", "", 200),
    "nested sines": nested(r"\sin(", "x", ")", 150),
    "nested exponentials": nested(r"\exp(", "x", ")", 150),
    "nested floors": nested(r"\lfloor ", "2.5", r" \rfloor", 45),
    "nested fractions": nested(r"\frac{1}{1+", "x", "}", 80),
    "nested braces": nested("{", "5", "}", 490),
    "nested parentheses": nested("(", "5", ")", 490),
    "nested brackets": nested("[", "5", "]", 490),
    "nested sets": nested(r"\{", "5", r"\}", 240),
    "nested tuples": nested("(1,", "5", ")", 240),
    "nested bars": "|" * 500 + "5" + "|" * 499,
    "nested texts": nested(r"\text{", "5", "}", 140),
    "nested left and right": nested(r"\left(", "5", r"\right)", 70),
    "minus signs": "-" * 990 + "5",
    "plus and minus": r"\pm 1" * 150,
    "plus and minus of symbols": "+".join(rf"\pm x^{{{n}}}" for n in range(70)),
    "nested plus and minus": nested(r"\pm(1", "", ")", 90),
    "list of plus and minus": r"\pm 1, " * 120 + "2",
    "long list": ",".join(["1"] * 490),
    "long list of expressions": ",".join(["x"] * 490),
    "long set": r"\{" + ",".join(str(n) for n in range(220)) + r"\}",
    "long tuple": "(" + ",".join(["x+1"] * 240) + ")",
    "union of intervals": r"\cup".join(f"({n},{n}.5)" for n in range(80)),
    "chain of inequalities": "<".join(["x"] * 490),
    "chain of equations": "=".join(["x^2"] * 240),
    "equation chain of numbers": "=".join(["2+3"] * 240),
    "set of polynomials' roots": r"\{x \mid x^{99}-x^{98}+7x^{13}>\sin x\}",
    "wide matrix": r"\begin{pmatrix}" + "1&" * 480 + r"1\end{pmatrix}",
    "tall matrix": r"\begin{pmatrix}" + r"1\\" * 300 + r"1\end{pmatrix}",
    "matrix of towers": r"\begin{pmatrix}" + r"9^{9^{9^{9}}}&" * 40 + r"1\end{pmatrix}",
    "inverse of a matrix": r"\begin{pmatrix}" + r"a&b&c&d\\" * 20 + r"\end{pmatrix}^{-1}",
    "power of a matrix": r"\begin{pmatrix}a&b\\c&d\end{pmatrix}^{10^6}",
    "determinant": r"\det\begin{pmatrix}" + r"a&b&c&d&e&f&g&h\\" * 8 + r"\end{pmatrix}",
    "repeating decimal": r"0.\overline{" + "142857" * 160 + "}",
    "repeating nothing": r"0.\overline{}",
    "long number": "7" * 990,
    "long decimal": "0." + "7" * 990,
    "fraction of long numbers": r"\frac{" + "7" * 480 + "}{" + "3" * 480 + "}",
    "power of a long number": "7" * 480 + "^{" + "7" * 480 + "}",
    "factorial of a long number": "7" * 900 + "!",
    "huge base": "101_{" + "9" * 900 + "}",
    "base zero": "101_0",
    "not a number": "nan",
    "infinity": "inf",
    "minus infinity": r"-\infty",
    "infinity less infinity": r"\infty-\infty",
    "complex infinity": r"\frac{\infty}{\infty}+i\infty",
    "python": "__import__('os').system('true')",
    "python lambda": "(lambda: [0]*10**10)()",
    "sympy call": "Integral(x**x,(x,0,oo)).doit()",
    "percent signs": r"50\%" * 200,
    "degree signs": r"5^\circ" * 130,
    "primes": "x" + "'" * 990,
    "subscripts": nested("x_{", "x", "}", 300),
    "mixed scripts": "x" + "_1^2" * 240,
    "unknown commands": "".join(rf"\zz{chr(97 + n % 26)}{{5}}" for n in range(120)),
    "definition of a command": r"\def\x{\x\x}\x",
    "newcommand": r"\newcommand{\x}{\x\x}\x",
    "input of a file": r"\input{/etc/passwd}",
    "environment never ended": r"\begin{pmatrix}1&2",
    "environment never begun": r"1&2\end{pmatrix}",
    "mismatched brackets": "([{)]}" * 160,
    "unbalanced everything": r"\left(\frac{\sqrt[{\{[((\text{\begin{pmatrix}",
    "only operators": "+-*/^_=<>" * 100,
    "only commas": "," * 990,
    "only spaces": " " * 990,
    "only backslashes": "\\" * 990,
    "only carets": "^" * 990,
    "only dollar signs": "$" * 990,
    "only dots": "." * 990,
    "digits and spaces": "1 " * 490,
    "digits and commas": "1," * 490,
    "digits and dots": "1." * 490,
    "digits and slashes": "1/" * 490 + "1",
    "digits and stars": "9**" * 320 + "9",
    "zero-width characters": "5" + "\u200b\u200c\u200d\u2060\ufeff" * 190,
    "right to left": "\u202e5\u202c" * 240,
    "null characters": "5\x00" * 490,
    "control characters": "".join(chr(n) for n in range(32)) * 30,
    "lone surrogates": "\ud800\udfff" * 490,
    "combining marks": "5" + "\u0301\u0488" * 490,
    "foreign digits": "\u0663\u096b\u09ef\uff15" * 240,
    "superscripts": "5\u00b2\u2075" * 320,
    "roman numerals": "\u2160\u2169\u216f" * 320,
    "emoji": "\U0001f9ee" * 900,
}

LONG = {
    "nested braces": nested("{", "5", "}", 10_000),
    "nested fractions": nested(r"\frac{", "5", "}{2}", 10_000),
    "nested parentheses": nested("(", "5", ")", 10_000),
    "nested roots": nested(r"\sqrt{", "5", "}", 10_000),
    "nested boxes": nested(r"\boxed{", "5", "}", 10_000),
    "megabyte of open braces": "{" * 2**20,
    "megabyte of closed braces": "}" * 2**20,
    "megabyte of braces": "{}" * 2**19,
    "million boxes": r"\boxed" * 10**6,
    "million open boxes": r"\boxed{" * 10**6,
    "many boxes": r"\boxed{5}" * 10**5,
    "many empty boxes": r"\boxed{}" * 10**5,
    "boxes with spaces": (r"\boxed" + " " * 50) * 20_000,
    "gigantic matrix": r"\begin{pmatrix}" + (("1&" * 999) + r"1\\") * 500 + r"\end{pmatrix}",
    "markers": "####" * 10**5,
    "answers": "the answer is " * 10**5,
    "answer colons": "Answer: " * 10**5,
    "answer and spaces": "answer" + " " * 10**6,
    "think tags": "<think>" * 10**5,
    "closing think tags": "</think>" * 10**5,
    "think tags and boxes": r"<think>\boxed{5}</think>" * 50_000,
    "spaces": " " * 10**6,
    "newlines": "\n" * 10**6,
    "digits": "7" * 10**5,
    "digits in groups": "1,234" * 10**5,
    "digits and commas": "1," * 10**5,
    "digits and dots": "1." * 10**5,
    "digits and slashes": "1/" * 10**5,
    "dollar signs": "$" * 10**6,
    "dollars and digits": "$1" * 10**5,
    "backslashes": "\\" * 10**6,
    "minus signs": "-" * 10**6,
    "repeating decimal": r"0.\overline{" + "142857" * 10**4 + "}",
    "null characters": "\x00" * 10**6,
    "zero-width characters": "\u200b" * 10**6,
    "lone surrogates": "\ud800" * 10**6,
    "long word": "answer" * 10**5,
}

ONE_NUMBER, ONE_EXPRESSION = "5", "x^2+1"


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


ROLES: dict[str, Callable[[str], tuple[str, str]]] = {
    "an answer to a number": lambda text: (boxed(text), ONE_NUMBER),
    "an answer to an expression": lambda text: (boxed(text), ONE_EXPRESSION),
    "a response": lambda text: (text, ONE_NUMBER),
    "a reference": lambda text: (boxed(ONE_EXPRESSION), text),
    "both": lambda text: (boxed(text), text),
}


ANSWERS = [
    *("5", "-7", "0.5", "1,000", r"\frac{3}{4}", r"2\frac{2}{3}", r"3\times10^8", r"0.\overline{3}", "2^{10}", r"30\%"),
    *(r"45^\circ", r"\$18.90", r"15\text{ cm}^2", r"2\sqrt{3}", r"\frac{\pi}{6}", "3+4i", "x^2+2x+1", "(x-1)(x+2)"),
    *(r"\frac{x+1}{x-2}", r"\ln 8", r"\sin^2 x", "e^{2x}", "(1,2)", "[0,1)", r"(-\infty,2]\cup[5,\infty)", "x>3"),
    *(r"\{1,2,3\}", "1, 2", r"1\pm\sqrt{5}", "x=1", "y=2x+1", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "101_2"),
    *(r"\text{Monday}", r"\textbf{(B)}", r"\binom{5}{2}", "5!", r"|x-1|\le2", r"\{x\mid x<1\}", r"\mathbb{R}", "1:2"),
]
FRAGMENTS = [
    *"0123456789xyzabinek+-*/^_=<>!,.;:|()[]{}&$%'\"\\ \n~#@?",
    *(r"\frac", r"\dfrac", r"\sqrt", r"\sqrt[", r"\text{", r"\mathrm{", r"\boxed{", r"\left", r"\right", r"\{", r"\}"),
    *(r"\pi", r"\infty", r"\cdot", r"\times", r"\pm", r"\cup", r"\in", r"\le", r"\ne", r"\mid", r"\circ", r"\%", r"\$"),
    *(r"\sin", r"\ln", r"\log_", r"\binom", r"\sum", r"\int", r"\lim", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\"),
    *(r"\overline{", r"\mathbb{R}", "{,}", r"\!", "10^", "<think>", "</think>", "####", "answer is", " or ", " and "),
    *("\u2212", "\u00b0", "\u03c0", "\u221a", "\u200b", "\u202e", "\x00", "\ud800", "\u7b54\u6848", "\uff15"),
]
BINARY = ["{}+{}", "{}-{}", r"{}\cdot {}", r"\frac{{{}}}{{{}}}", "({})({})", "{}^{{{}}}", "{},{}", "({},{})", "{}={}"]
UNARY = [
    r"\sqrt{{{}}}",
    r"\ln({})",
    r"\sin {}",
    "-{}",
    "({})!",
    r"\{{{}\}}",
    r"\text{{{}}}",
    r"\left({}\right)",
    "|{}|",
]

answers = st.sampled_from(ANSWERS)
soups = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=40).map("".join)
# Well-formed, however senseless.
expressions = st.recursive(
    st.sampled_from(["x", "y", "n", "i", r"\pi", "-3", "0", "7", "64", "1000"]),
    lambda parts: st.one_of(
        st.builds(str.format, st.sampled_from(UNARY), parts),
        st.builds(str.format, st.sampled_from(BINARY), parts, parts),
    ),
    max_leaves=6,
)
drawn_pairs = st.one_of(
    st.tuples(soups.map(boxed), answers),
    st.tuples(soups, answers),
    st.tuples(soups.map(boxed), soups),
    st.tuples(expressions.map(boxed), expressions),
    st.tuples(st.text().map(boxed), answers),
)


def drawn_by_hypothesis(count: int) -> list[tuple[str, str]]:
    """The same pairs of response and reference each time."""
    pairs = []

    @seed(0)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate])
    @given(drawn_pairs)
    def draw(pair: tuple[str, str]) -> None:
        pairs.append(pair)

    draw()
    return pairs


def mutated(chance: random.Random, answer: str) -> str:
    """The answer after one to four slips of a pen."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(answer))
        until = at + chance.randint(0, 4)
        answer = answer[:at] + chance.choice(("", answer[at:until] * 2, chance.choice(FRAGMENTS))) + answer[until:]
    return answer


def slips_of_a_pen(count: int) -> list[tuple[str, str]]:
    """Real-looking answers that went wrong, some of them at great length, against what they were."""
    chance = random.Random(0)
    references = [chance.choice(ANSWERS) for _ in range(count)]
    repeats = [chance.randint(2, 10_000) if chance.random() < 0.02 else 1 for _ in range(count)]
    return [
        (boxed(mutated(chance, reference) * times), reference)
        for reference, times in zip(references, repeats, strict=True)
    ]
