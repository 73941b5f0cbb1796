"""Finds the problems of a training set that stand in an evaluation set, word for word or nearly."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain

NGRAM_WORDS = 5
NEAR = 0.6
"""Least share of common n-grams."""
MIN_CONTAINED = 8
"""N-grams; a shorter problem is hardly more than a phrase, and that it stands in another says little."""

_SPECIAL = re.compile(r"[\W_]+")
# Commands that set type and say nothing.
_TYPESETTING = re.compile(
    r"\\(?:(?:left|right|text|textbf|textit|mathrm|mathbf|operatorname|displaystyle|q?quad|begin|end|big[lr]?)\b|[,;:!])"
)
_FRACTION = re.compile(r"\\[cdt]frac")
_WORD = re.compile("[a-z]+|[0-9]+|[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")

Ngrams = tuple[int, ...]
"""Hashes of n-grams, each once and in the order of the text, so that sums of their weights repeat to the last bit."""


class Likeness(IntEnum):
    """How two problems are alike; each kind includes the ones before it."""

    EXACT = 1
    LOOSE = 2
    NEAR = 3


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training problem that is like an evaluation problem, both by their places."""

    train: int
    evaluation: int
    likeness: Likeness


def overlaps(train: Sequence[str], evaluation: Sequence[str]) -> list[Overlap]:
    """All pairs of problems that are alike, by their places in `evaluation`, then in `train`.

    - exact: the same string.
    - loose: the same letters and digits, in upper or lower case.
    - near: of the n-grams of five words in either problem, 60 % are in both. Or 60 % of those in one problem are also
      in the other, where each n-gram has the inverse of the number of problems that hold it as its weight.

    The weights discount what many problems say, such as "where m and n are relatively prime positive integers": a
    problem is recognized whatever form its answer was made to have. docs/data.md has measurements. Problems meet only
    in an index of n-grams, so that the time grows with the length of both sets and not with its product.

    Example: overlaps(["What is 2+3?"], ["what is $2 + 3$?"]) is one overlap, a loose one.
    """
    found = dict.fromkeys(_near(train, evaluation), Likeness.NEAR)
    loose = _same(map(_letters_and_digits, train), map(_letters_and_digits, evaluation))
    found |= dict.fromkeys(loose, Likeness.LOOSE)
    found |= dict.fromkeys(_same(train, evaluation), Likeness.EXACT)
    return [Overlap(a, b, found[a, b]) for a, b in sorted(found, key=lambda pair: pair[::-1])]


def count_contaminated(found: Iterable[Overlap]) -> dict[Likeness, int]:
    """How many evaluation problems are like a training problem, for each kind of likeness."""
    closest: dict[int, Likeness] = {}
    for overlap in found:
        closest[overlap.evaluation] = min(overlap.likeness, closest.get(overlap.evaluation, Likeness.NEAR))
    return {likeness: sum(other <= likeness for other in closest.values()) for likeness in Likeness}


def _same(train: Iterable[str], evaluation: Iterable[str]) -> Iterator[tuple[int, int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for b, text in enumerate(evaluation):
        places[text].append(b)
    return ((a, b) for a, text in enumerate(train) if text for b in places.get(text, ()))


def _near(train: Iterable[str], evaluation: Iterable[str]) -> Iterator[tuple[int, int]]:
    train_ngrams, evaluation_ngrams = [_ngrams(text) for text in train], [_ngrams(text) for text in evaluation]
    # The union of two counters takes the larger count of each key.
    holders = Counter(chain.from_iterable(train_ngrams)) | Counter(chain.from_iterable(evaluation_ngrams))
    weight_of = {ngram: 1 / count for ngram, count in holders.items()}
    weights = [sum(map(weight_of.__getitem__, ngrams)) for ngrams in evaluation_ngrams]
    places: dict[int, list[int]] = defaultdict(list)
    for b, ngrams in enumerate(evaluation_ngrams):
        for ngram in ngrams:
            places[ngram].append(b)
    for a, ngrams in enumerate(train_ngrams):
        weight = sum(map(weight_of.__getitem__, ngrams))
        num_common: dict[int, int] = defaultdict(int)
        common_weight: dict[int, float] = defaultdict(float)
        for ngram in ngrams:
            for b in places.get(ngram, ()):
                num_common[b] += 1
                common_weight[b] += weight_of[ngram]
        for b, count in num_common.items():
            sizes = len(ngrams), len(evaluation_ngrams[b])
            is_contained = common_weight[b] >= NEAR * min(weight, weights[b]) and min(sizes) >= MIN_CONTAINED
            if is_contained or count >= NEAR * (sum(sizes) - count):
                yield a, b


def _letters_and_digits(text: str) -> str:
    return _SPECIAL.sub("", text.casefold())


def _ngrams(text: str) -> Ngrams:
    """A text of fewer words is one n-gram as a whole."""
    words = _WORD.findall(_TYPESETTING.sub(" ", _FRACTION.sub(r"\\frac", text.lower())))
    count = max(len(words) - NGRAM_WORDS + 1, min(len(words), 1))
    return tuple(dict.fromkeys(hash(tuple(words[start : start + NGRAM_WORDS])) for start in range(count)))
