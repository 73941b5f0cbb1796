"""The supervised training behind every warm start: a tiny Llama imitates responses, and is saved as a normal folder."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PADDING, END, ROLES = "<|pad|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
IGNORED = -100
RISE_STEPS = 40
HEAD_SIZE = 32

Example = tuple[str, str]
"""A problem, and a response to it."""
Rows = Sequence[tuple[list[int], list[int]]]
"""Token ids of a prompt, and of the response to it."""


def make_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, intermediate: int, layers: int, seed: int
) -> LlamaForCausalLM:
    """Make a Llama in float32 with random weights; torch's global generator is left as it was.

    Args:
        hidden: size of its states, a multiple of the 32 of each attention head.
        intermediate: of its feed-forward layers.
        layers: their number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=hidden // HEAD_SIZE,
                num_key_value_heads=hidden // HEAD_SIZE,
                max_position_embeddings=128,
                initializer_range=0.05,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


def imitate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[], Sequence[Example]],
    *,
    steps: int,
    learning_rate: float,
) -> float:
    """Train a model on batches of examples, each drawn afresh.

    The learning rate rises over the first 40 steps and falls linearly to zero. Returns the last batch's loss, in nats
    per response token.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / RISE_STEPS, 1) * (1 - step / steps)
    )
    encode = example_encoder(tokenizer)
    loss = torch.zeros(())
    for _ in range(steps):
        ids, labels = padded([encode(example) for example in draw()], tokenizer.pad_token_id)
        logits = model(input_ids=ids[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return loss.item()


def example_encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[Example], tuple[list[int], list[int]]]:
    """What turns an example into the token ids of its prompt and its response; it remembers texts that come again."""

    @cache
    def prompt_ids(problem: str) -> list[int]:
        question = [{"role": "user", "content": problem}]
        text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    @cache
    def response_ids(response: str) -> list[int]:
        ids: list[int] = tokenizer.encode(response + END, add_special_tokens=False)
        return ids

    return lambda example: (prompt_ids(example[0]), response_ids(example[1]))


def padded(rows: Rows, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels [len(rows), longest], padded on the right; labels are −100 outside the responses."""
    longest = max(len(prompt_ids) + len(response_ids) for prompt_ids, response_ids in rows)
    ids = torch.full((len(rows), longest), padding)
    labels = torch.full((len(rows), longest), IGNORED)
    for row, (prompt_ids, response_ids) in enumerate(rows):
        end = len(prompt_ids) + len(response_ids)
        ids[row, :end] = torch.tensor(prompt_ids + response_ids)
        labels[row, len(prompt_ids) : end] = torch.tensor(response_ids)
    return ids, labels


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face folder; the tokenizer comes last."""
    model.generation_config = GenerationConfig(
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
