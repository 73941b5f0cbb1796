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

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dcpo_async.demo.arithmetic import Comparison, guessed_response, problem_sets, write_problems

PADDING, END, ROLES = "<|pad|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
IGNORED = -100


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


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make a Llama of 0.95 million parameters in float32, with random weights from torch's global generator."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=128,
            initializer_range=0.05,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
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
    """Train a new model on fresh guesses at comparisons and save it to folder, with its tokenizer.

    The learning rate rises over the first 40 steps and falls linearly to zero. The same seed gives the same weights
    on the same machine with the same number of threads; torch's global generator is left as it was. Returns the last
    batch's loss, in nats per response token.
    """
    rng = random.Random(seed)
    tokenizer = make_tokenizer([f"{c.problem}\n{guessed_response(c, rng)}" for c in comparisons[:1000]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 40, 1) * (1 - step / steps))
    loss = torch.zeros(())
    for _ in range(steps):
        ids, labels = guessed_batch(tokenizer, rng.choices(comparisons, k=batch_size), rng)
        logits = model(input_ids=ids[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.generation_config = GenerationConfig(
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss.item()


def guessed_batch(
    tokenizer: PreTrainedTokenizerFast, comparisons: Sequence[Comparison], rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels [len(comparisons), longest], padded on the right; labels are −100 outside the responses."""
    rows = []
    for comparison in comparisons:
        question = [{"role": "user", "content": comparison.problem}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        response_ids = tokenizer.encode(guessed_response(comparison, rng) + END, add_special_tokens=False)
        rows.append((prompt_ids, response_ids))
    longest = max(len(prompt_ids) + len(response_ids) for prompt_ids, response_ids in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), IGNORED)
    for row, (prompt_ids, response_ids) in enumerate(rows):
        end = len(prompt_ids) + len(response_ids)
        ids[row, :end] = torch.tensor(prompt_ids + response_ids)
        labels[row, len(prompt_ids) : end] = torch.tensor(response_ids)
    return ids, labels


def main() -> None:
    """Write the demo's problems and its warm model into a folder; a process of its own, for its log and its memory."""
    parser = argparse.ArgumentParser(prog="dcpo_async.demo.warmup", description="The demo's first stage.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    sets = problem_sets(options.seed)
    write_problems(sets.train, options.out / "train.jsonl")
    write_problems(sets.held_out, options.out / "held_out.jsonl")
    loss = warm_up(sets.warm_up, options.out / "model", seed=options.seed, steps=options.steps)
    print(f"loss {loss:.3f} nats per response token after {options.steps} steps")


if __name__ == "__main__":
    main()
