"""What a model knows of a table of facts, asked fact by fact: exact, without a sample."""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dcpo_async.demo.chains import ChainTask, FactTable
from dcpo_async.demo.imitation import example_encoder


@dataclass(frozen=True, slots=True)
class FactReading:
    """What a model makes of the facts, each asked as a chain of one, at the token that is boxed.

    Attributes:
        known: share of the facts it was taught of which the right state is the most probable token.
        learned: the same of those that it was not taught.
        probability: mean probability of the right state, of those that it was not taught.
    """

    known: float
    learned: float
    probability: float


@torch.no_grad()
def read_facts(model: Any, tokenizer: PreTrainedTokenizerFast, table: FactTable) -> FactReading:
    """Ask a causal language model for every fact of a table; a share of no facts is 0."""
    encode = example_encoder(tokenizer)
    rows, answers, was_taught = [], [], []
    for chain, known in table.facts():
        prompt, response = encode((chain.problem, rf"\boxed{{ {chain.answer} }}"))
        rows.append(prompt + response[:1])
        answers.append(response[1])
        was_taught.append(known)
    # All prompts are of one length: nothing is padded.
    logits = model(input_ids=torch.tensor(rows), use_cache=False).logits[:, -1].float()
    right, known_facts = torch.tensor(answers), torch.tensor(was_taught)
    is_right = (logits.argmax(-1) == right).float()
    probability = logits.softmax(-1).gather(1, right[:, None])[:, 0]
    return FactReading(
        known=_mean(is_right[known_facts]),
        learned=_mean(is_right[~known_facts]),
        probability=_mean(probability[~known_facts]),
    )


def _mean(values: torch.Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def main() -> None:
    """Print the readings of models as one JSON object; a process of its own, for its memory."""
    parser = argparse.ArgumentParser(prog="dcpo_async.demo.chain_reading", description="Which facts a model knows.")
    parser.add_argument("task", type=Path, help="the folder that the task was written into")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    table, found = ChainTask.read(options.task).table, {}
    for word in options.models:
        name, _, folder = word.partition("=")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        found[name] = asdict(read_facts(model, AutoTokenizer.from_pretrained(folder), table))
    options.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
