"""Where problem sets are found, and what their fields are called: the field's usual ones by name."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dcpo_async.errors import ConfigError

BOXED: Final = "boxed"
"""As an answer pattern: the answer is what the last \\boxed{} holds."""
FILE_SUFFIXES = (
    *(".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"),
    *(".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz"),
)


@dataclass(frozen=True, slots=True)
class ProblemSource:
    """A problem set that can be loaded.

    Attributes:
        name: what tables and messages call it.
        location: a file of one of FILE_SUFFIXES, a folder, or the id of a Hugging Face data set.
        problem_field, answer_field: column names; a dot reaches into nested values ("prompt.0.content").
        split, subset: of a Hugging Face data set; files have neither.
        answer_pattern: regular expression with one group that finds the answer in a longer solution, the last match
            counts; or "boxed".
        metadata_fields: columns that travel with a problem.
        instructions: texts before and after the problem, which are taken off where they stand.
        is_copy: a file under a preset's name; it has the preset's fields, or else `problem` and `answer`.
    """

    name: str
    location: str
    problem_field: str = "problem"
    answer_field: str = "answer"
    split: str = "train"
    subset: str | None = None
    answer_pattern: str | None = None
    metadata_fields: tuple[str, ...] = ()
    instructions: tuple[str, str] = ("", "")
    is_copy: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is read from a single file."""
        return self.location.endswith(FILE_SUFFIXES) and not Path(self.location).expanduser().is_dir()


_DAPO_INSTRUCTIONS = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.",
    'Remember to put your answer on its own line after "Answer:".',
)
_GSM8K = ProblemSource("gsm8k", "openai/gsm8k", "question", subset="main", answer_pattern="#### (.+)")
# The authors' own hendrycks/competition_math is no longer on the hub; this mirror has its fields and splits.
_MATH = ProblemSource("math", "DigitalLearningGmbH/MATH-lighteval", answer_field="solution", answer_pattern=BOXED)

PRESETS = {
    source.name: source
    for source in (
        ProblemSource(
            "dapo-math-17k",
            "BytedTsinghua-SIA/DAPO-Math-17k",
            "prompt.0.content",
            "reward_model.ground_truth",
            instructions=_DAPO_INSTRUCTIONS,
        ),
        _GSM8K,
        replace(_GSM8K, name="gsm8k-test", split="test"),
        _MATH,
        replace(_MATH, name="math-test", split="test"),
        ProblemSource("deepscaler", "agentica-org/DeepScaleR-Preview-Dataset"),
        ProblemSource("aime24", "HuggingFaceH4/aime_2024"),
        ProblemSource("aime25", "math-ai/aime25", split="test"),
        ProblemSource("amc23", "math-ai/amc23", "question", split="test"),
        ProblemSource("math500", "HuggingFaceH4/MATH-500", split="test"),
    )
}
"""The presets by name; docs/data.md has their licences."""


def problem_source(
    word: str,
    *,
    problem_field: str | None = None,
    answer_field: str | None = None,
    answer_pattern: str | None = None,
    split: str | None = None,
    subset: str | None = None,
    metadata_fields: tuple[str, ...] = (),
) -> ProblemSource:
    """The source that a word names; whatever else is given overrides what the preset says.

    Args:
        word: a preset's name; NAME=FILE, a local copy of a preset's problems; a file; a folder; or the id of a
            Hugging Face data set. A preset wins over a folder of the same name, which ./NAME names.

    Raises ConfigError for a word that can be none of these.

    Example: problem_source("amc23=amc23.jsonl") is called amc23, and reads the file.
    """
    source = _named(word)
    return replace(
        source,
        problem_field=problem_field or source.problem_field,
        answer_field=answer_field or source.answer_field,
        answer_pattern=answer_pattern or source.answer_pattern,
        split=split or source.split,
        subset=subset or source.subset,
        metadata_fields=metadata_fields,
        is_copy=source.is_copy and not (problem_field or answer_field or answer_pattern),
    )


def _named(word: str) -> ProblemSource:
    name, equals, file = word.partition("=")
    if name in PRESETS and (file or not equals):
        return replace(PRESETS[name], location=file, is_copy=True) if equals else PRESETS[name]
    path = Path(word).expanduser()
    if word.endswith(FILE_SUFFIXES) and not equals:
        return ProblemSource(path.stem, word)
    if word and (path.exists() or ("/" in word and not equals)):
        return ProblemSource(word, word)
    raise ConfigError(
        f"{word!r} names no problems; give one of {', '.join(PRESETS)}, NAME=FILE for a local copy of one, a path "
        f"ending in {', '.join(FILE_SUFFIXES)}, a folder, or the id OWNER/NAME of a Hugging Face data set"
    )
