"""The warm start of the task of chains: a tiny model that knows the form, a share of the facts, and guesses the rest.

What it imitates is right where the table's known facts suffice, and guesses evenly elsewhere: what it lacks is in no
example that it has seen, only in the rewards.
"""

import argparse
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dcpo_async.demo.chains import ChainSizes, ChainTask
from dcpo_async.demo.imitation import CHAT_TEMPLATE, END, PADDING, ROLES, imitate, make_model, save
from dcpo_async.demo.problems import write_problems

BATCH_SIZE, LEARNING_RATE = 128, 2e-3
UNKNOWN = "<|unknown|>"


def chain_tokenizer(sizes: ChainSizes) -> PreTrainedTokenizerFast:
    """One token for each state and each operation, for what opens a box and what closes it."""
    states = [str(state) for state in range(sizes.states)]
    operations = [f"f{operation}" for operation in range(sizes.operations)]
    words = [PADDING, END, *ROLES, UNKNOWN, r"\boxed{", "}", *states, *operations]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([PADDING, END, *ROLES, UNKNOWN])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def warm_up(task: ChainTask, folder: Path, *, steps: int) -> float:
    """Train a new model of 0.3 million parameters on guesses at chains; save it to folder, with its tokenizer.

    The same task gives the same weights on the same machine with the same number of threads. Returns the last batch's
    loss, in nats per response token.
    """
    tokenizer = chain_tokenizer(task.sizes)
    model = make_model(tokenizer, hidden=128, intermediate=256, layers=2, seed=task.seed)
    # Beside the task's own numbers: with these the warm-up would begin with the problems to train on.
    rng = random.Random(f"{task.seed}/warm-up")

    def draw() -> list[tuple[str, str]]:
        chains = [task.table.draw(task.sizes.longest, rng) for _ in range(BATCH_SIZE)]
        return [(chain.problem, task.table.guessed_response(chain, rng)) for chain in chains]

    loss = imitate(model, tokenizer, draw, steps=steps, learning_rate=LEARNING_RATE)
    save(model, tokenizer, folder)
    return loss


def write_start(task: ChainTask, out: Path, *, steps: int) -> float:
    """Write a task's problems and its warm model into a folder; returns the loss of the last batch."""
    task.write(out)
    write_problems(task.train, out / "train.jsonl")
    write_problems(task.held_out, out / "held_out.jsonl")
    return warm_up(task, out / "model", steps=steps)


def main() -> None:
    """A process of its own, for its log and its memory."""
    parser = argparse.ArgumentParser(prog="dcpo_async.demo.chain_model", description="The first stage, for chains.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--sizes", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    loss = write_start(ChainTask.drawn(ChainSizes.read(options.sizes), options.seed), options.out, steps=options.steps)
    print(f"loss {loss:.3f} nats per response token after {options.steps} steps")


if __name__ == "__main__":
    main()
