"""The short supervised warm-up that gives the demo a model to start from, saved as a normal Hugging Face folder.

It imitates guesses (arithmetic.guessed_response): well-formed, drawn from the numbers in the problem, and right in
one case of four. So it teaches the format and how to copy a number, and says nothing about what "largest"
means. A model that imitates guesses perfectly stays at one right answer in four, however long it trains and
at whatever temperature it is sampled: what it lacks is in no example that it has seen, only in the rewards.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dcpo_async.demo.arithmetic import Comparison, guessed_response, problem_sets
from dcpo_async.demo.imitation import CHAT_TEMPLATE, END, PADDING, ROLES, Example, imitate, make_model, save
from dcpo_async.demo.problems import write_problems


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer on texts: any text survives the round trip, and a number of texts is one token.

    Words that always stand together become one token too, which keeps prompts and responses short.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[PADDING, END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def warm_up(
    comparisons: Sequence[Comparison],
    folder: Path,
    *,
    seed: int,
    steps: int = 250,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
) -> float:
    """Train a new model of 0.95 million parameters on guesses at comparisons; save it to folder, with its tokenizer.

    The same seed gives the same weights on the same machine with the same number of threads; torch's global generator
    is left as it was. Returns the last batch's loss, in nats per response token.
    """
    rng = random.Random(seed)
    tokenizer = make_tokenizer([f"{c.problem}\n{guessed_response(c, rng)}" for c in comparisons[:1000]])
    model = make_model(tokenizer, hidden=192, intermediate=512, layers=2, seed=seed)

    def draw() -> list[Example]:
        return [(chosen.problem, guessed_response(chosen, rng)) for chosen in rng.choices(comparisons, k=batch_size)]

    loss = imitate(model, tokenizer, draw, steps=steps, learning_rate=learning_rate)
    save(model, tokenizer, folder)
    return loss


def main() -> None:
    """Write the demo's problems and its warm model into a folder; a process of its own, for its log and its memory."""
    parser = argparse.ArgumentParser(prog="dcpo_async.demo.warmup", description="The demo's first stage.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sets = problem_sets(options.seed)
    write_problems(sets.train, options.out / "train.jsonl")
    write_problems(sets.held_out, options.out / "held_out.jsonl")
    loss = warm_up(sets.warm_up, options.out / "model", seed=options.seed, steps=options.steps)
    print(f"loss {loss:.3f} nats per response token after {options.steps} steps")


if __name__ == "__main__":
    main()
