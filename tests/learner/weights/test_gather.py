from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.weights.gather import export_weights, gather_weights, layer_of, tied_names, write_skeleton
from tests.tiny_model import make_tiny_model


def test_a_parameter_belongs_to_its_numbered_layer_or_stands_alone() -> None:
    assert layer_of("model.layers.3.mlp.up_proj.weight") == "model.layers.3"
    assert layer_of("model.embed_tokens.weight") == "model.embed_tokens.weight"


def test_gathered_weights_have_the_names_and_values_of_the_checkpoint(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    layers: list[int] = []

    @contextmanager
    def gather(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        layers.append(len(parameters))
        yield

    weights = gather_weights(model, torch.float32, gather, keep=True)
    expected = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert layers == [1, 9, 9, 1, 1]


def test_a_rank_that_keeps_nothing_enters_the_same_contexts(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=1)
    entered: list[int] = []

    @contextmanager
    def gather(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        entered.append(len(parameters))
        yield

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert gather_weights(model, torch.float32, gather, keep=False) == {}
    assert entered == [1, 9, 9, 1, 1]


def test_a_tied_head_is_published_once_under_the_name_of_the_embedding(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=1, tied=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert tied_names(model) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_an_exported_folder_loads_as_the_model_that_was_exported(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", seed=1, tied=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    write_skeleton(tmp_path / "skeleton", model, AutoTokenizer.from_pretrained(tmp_path / "model"), tmp_path / "model")
    for scale in (2.0, 3.0):
        weights = {name: scale * weight.detach() for name, weight in model.named_parameters()}
        export_weights(tmp_path / "export", tmp_path / "skeleton", weights)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    for (name, weight), (_, found) in zip(model.named_parameters(), exported.named_parameters(), strict=True):
        assert torch.equal(3 * weight, found), name
    assert AutoTokenizer.from_pretrained(tmp_path / "export").encode("1+1") == [7, 16, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "model", "skeleton"]
