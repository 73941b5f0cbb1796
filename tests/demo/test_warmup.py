import random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcpo_async.demo.arithmetic import guessed_response, problem_sets
from dcpo_async.demo.imitation import example_encoder, padded
from dcpo_async.demo.warmup import make_tokenizer, warm_up
from dcpo_async.grading import grade

PROBLEMS = problem_sets(0).warm_up


@pytest.fixture(scope="module")
def tokenizer():
    rng = random.Random(0)
    return make_tokenizer([f"{problem.problem}\n{guessed_response(problem, rng)}" for problem in PROBLEMS])


@pytest.mark.parametrize(
    "text", ["The answer is \\boxed{17}.", "  two  spaces\n", "naïve – 語 🙂", "x<|end|>y", "12345"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_number_of_the_problems_is_one_token(tokenizer):
    assert all(len(tokenizer.encode(str(number))) == 1 for number in range(10, 40))


def test_responses_are_short_and_graded_as_well_formed(tokenizer):
    rng = random.Random(1)
    for problem in PROBLEMS[:100]:
        response = guessed_response(problem, rng)
        assert len(tokenizer.encode(response)) + 1 <= 8
        assert grade(response, problem.answer).extracted in {str(number) for number in problem.numbers}


def test_labels_cover_the_response_with_its_end_and_nothing_else(tokenizer):
    encode, rng = example_encoder(tokenizer), random.Random(2)
    rows = [encode((problem.problem, guessed_response(problem, rng))) for problem in PROBLEMS[:8]]
    ids, labels = padded(rows, tokenizer.pad_token_id)
    for row, problem in enumerate(PROBLEMS[:8]):
        learned = tokenizer.decode(labels[row][labels[row] >= 0])
        assert learned.endswith("<|end|>")
        prompt = f"<|user|>{problem.problem}<|end|><|assistant|>"
        assert tokenizer.decode(ids[row], skip_special_tokens=False).startswith(prompt + learned)


def test_two_steps_leave_a_folder_that_loads_and_the_same_seed_leaves_the_same_weights(tmp_path):
    before = torch.random.get_rng_state()
    warm_up(PROBLEMS, tmp_path / "a", seed=5, steps=2, batch_size=4)
    warm_up(PROBLEMS, tmp_path / "b", seed=5, steps=2, batch_size=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    chat = [{"role": "user", "content": "What is the largest of 18, 37, 12 and 25?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|user|>What is the largest of 18, 37, 12 and 25?<|end|><|assistant|>"
