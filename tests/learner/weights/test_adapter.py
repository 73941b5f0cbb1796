import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from dcpo_async.config import AdapterSettings
from dcpo_async.errors import ConfigError
from dcpo_async.run_folder import AdapterFolders, RunFolder
from dcpo_async.weights.tensor_file import ADAPTER_NAME, WEIGHTS_NAME, map_tensors, write_tensors
from learner.weights.adapter import add_adapter, write_adapter_skeleton
from learner.weights.adapter_folders import export_adapter, write_base
from learner.weights.layout import Layout, Schema, in_checkpoint_format
from learner.weights.loading import loaded_model
from learner.weights.model_folder import write_skeleton
from tests.tiny_families import make_family
from tests.tiny_model import make_tiny_model

SETTINGS = AdapterSettings(rank=2, alpha=6, target_modules=("q_proj", "mlp.down_proj"))
TOKENS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_model(tmp_path / "model", seed=0)
    return tmp_path / "model"


def loaded(folder: Path) -> Any:
    return loaded_model(folder, torch.float32).eval()


def drawn(model: nn.Module) -> None:
    """Matrices that add something."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained_and_published(folder: Path) -> None:
    model = loaded(folder)
    before = model(TOKENS).logits
    views = add_adapter(model, SETTINGS, seed=1)
    assert torch.equal(model(TOKENS).logits, before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {view.source for view in views.values()}
    assert len(trained) == 2 * 2 * 2
    layout = Layout.of(model, torch.float32)
    assert layout.places.keys() == trained
    assert layout.num_bytes == 2 * 2 * (64 + 64 + 128 + 64) * 4


def test_its_file_has_the_names_of_pefts_own_and_peft_reads_it(folder: Path, tmp_path: Path) -> None:
    model = loaded(folder)
    views = add_adapter(model, SETTINGS, seed=1)
    drawn(model)
    expected = model(TOKENS).logits
    write_adapter_skeleton(tmp_path / "adapter", SETTINGS, str(folder))
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    write_tensors(tmp_path / "adapter" / ADAPTER_NAME, in_checkpoint_format(state, views))

    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "mlp.down_proj"], task_type="CAUSAL_LM")
    assert get_peft_model_state_dict(get_peft_model(loaded(folder), config)).keys() == views.keys()
    read = PeftModel.from_pretrained(loaded(folder), tmp_path / "adapter")
    assert torch.equal(read(TOKENS).logits, expected)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder
    )


def test_all_ranks_and_all_starts_of_a_run_begin_with_the_same_matrices(folder: Path) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        model = loaded(folder)
        add_adapter(model, SETTINGS, seed)
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(len(states)))
        states.append(dict(model.state_dict()))
    same = [torch.equal(states[0][name], states[1][name]) for name in states[0]]
    assert all(same)
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_in_bfloat16_the_matrices_are_bfloat16_too(folder: Path) -> None:
    model = loaded_model(folder, torch.bfloat16)
    views = add_adapter(model, SETTINGS, seed=1)
    assert {model.state_dict()[view.source].dtype for view in views.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("query", "a llama model has no query; its linear layers are down_proj, gate_proj, k_proj, o_proj, q_proj"),
        ("proj", "a llama model has no proj; "),
        ("lm_head", "lm_head of a llama model is the model's head; only linear layers below the head"),
        ("embed_tokens", "embed_tokens of a llama model is a Embedding; only linear layers"),
        ("mlp", "mlp of a llama model is a LlamaMLP; only linear layers"),
    ],
)
def test_what_cannot_have_an_adapter_is_refused_in_words(folder: Path, target: str, words: str) -> None:
    model = loaded(folder)
    with pytest.raises(ConfigError, match=f"^adapter.target_modules: {words}"):
        add_adapter(model, SETTINGS.model_copy(update={"target_modules": ("q_proj", target)}), seed=1)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_are_not_linear_as_those_of_gpt2_are_refused(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=1, n_head=1))
    with pytest.raises(ConfigError, match="c_attn of a gpt2 model is a Conv1D; only linear layers"):
        add_adapter(model, AdapterSettings(rank=2, target_modules=("c_attn",)), seed=1)
    with pytest.raises(ConfigError, match="a gpt2 model has no q_proj; its linear layers are none"):
        add_adapter(model, AdapterSettings(rank=2), seed=1)


def test_experts_which_are_no_layers_of_their_own_are_refused(tmp_path: Path) -> None:
    make_family(tmp_path, "mixtral")
    with pytest.raises(ConfigError, match="a mixtral model has no w1; its linear layers are k_proj, o_proj, q_proj"):
        add_adapter(loaded(tmp_path), AdapterSettings(rank=2, target_modules=("q_proj", "w1")), seed=1)


def test_an_export_is_the_model_that_was_trained_and_its_adapter_alone(folder: Path, tmp_path: Path) -> None:
    run, beside, model = RunFolder(tmp_path / "run"), AdapterFolders(tmp_path / "run"), loaded(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    write_base(beside.base, model, tokenizer, folder)
    views = add_adapter(model, SETTINGS, seed=1)
    write_skeleton(run.skeleton, model, tokenizer, folder)
    write_adapter_skeleton(beside.skeleton, SETTINGS, str(folder))
    drawn(model)
    schema = Schema(layout=Layout.of(model, torch.float32), views=views, tied={})
    state = torch.zeros(schema.layout.num_bytes, dtype=torch.uint8)
    for name, tensor in schema.layout.tensors(state).items():
        tensor.copy_(model.state_dict()[name])
    for _ in range(2):
        export_adapter(run, schema.tensors(state))

    expected = model(TOKENS).logits
    found = AutoModelForCausalLM.from_pretrained(run.export, dtype=torch.float32)(TOKENS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    by_peft = PeftModel.from_pretrained(loaded(folder), run.export / "adapter")
    assert torch.equal(by_peft(TOKENS).logits, expected)
    for name, tensor in by_peft.merge_and_unload().state_dict().items():
        torch.testing.assert_close(map_tensors(run.export / WEIGHTS_NAME)[name], tensor, atol=1e-6, rtol=1e-6)
    assert {path.name for path in run.export.parent.iterdir()} == {"adapter", "base", "export", "skeleton"}


def test_the_model_below_is_written_once_for_each_type(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for dtype in (torch.float32, torch.float32, torch.bfloat16):
        write_base(tmp_path / "base", loaded_model(folder, dtype), tokenizer, folder)
        written = map_tensors(tmp_path / "base" / WEIGHTS_NAME)
        assert {tensor.dtype for tensor in written.values()} == {dtype}
        inode = (tmp_path / "base").stat().st_ino
        write_base(tmp_path / "base", loaded_model(folder, dtype), tokenizer, folder)
        assert (tmp_path / "base").stat().st_ino == inode
    original = map_tensors(folder / WEIGHTS_NAME)
    assert all(torch.equal(original[name].bfloat16(), tensor) for name, tensor in written.items())
