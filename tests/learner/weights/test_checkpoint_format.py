"""What is published equals, bit for bit, what transformers saves; all else is refused when it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import Chunk, PermuteForRope, WeightConverter

from dcpo_async.errors import ConfigError
from learner.weights.checkpoint_format import checkpoint_views, tied_checkpoint_names
from learner.weights.layout import TensorView, in_checkpoint_format
from learner.weights.loading import loaded_model
from tests.tiny_families import FAMILIES, make_family, perturb

WEIGHTS = "model.safetensors"


def load(folder: Path) -> Any:
    return loaded_model(folder, torch.float32)


def change_weights(folder: Path, *removed: str, **added: torch.Tensor) -> None:
    """Take tensors out of a folder's weights, and put others in."""
    weights = load_file(folder / WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if name not in removed}
    save_file(kept | added, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_published_tensors_are_those_that_transformers_saves(tmp_path: Path, family: str) -> None:
    make_family(tmp_path / "model", family)
    model = load(tmp_path / "model")
    views, expected = checkpoint_views(model), load_file(tmp_path / "model" / WEIGHTS)
    for seed in range(3):
        published = in_checkpoint_format(model.state_dict(), views)
        assert published.keys() == expected.keys()
        assert all(torch.equal(published[name], expected[name]) for name in expected)
        perturb(model, seed, scale=0.1)
        model.save_pretrained(tmp_path / "saved")
        expected = load_file(tmp_path / "saved" / WEIGHTS)


def test_experts_are_views_of_the_tensor_that_has_them_all(tmp_path: Path) -> None:
    make_family(tmp_path, "mixtral", hidden_size=12, intermediate_size=4)
    model = load(tmp_path)
    views, source = checkpoint_views(model), "model.layers.0.mlp.experts.gate_up_proj"
    experts = "model.layers.0.block_sparse_moe.experts"
    assert views[f"{experts}.1.w3.weight"] == TensorView(source, (4, 12), (12, 1), 144)
    assert views[f"{experts}.0.w1.weight"] == TensorView(source, (4, 12), (12, 1), 0)
    published = in_checkpoint_format(model.state_dict(), views)
    model.get_parameter(source).data[1, 4:] = 7
    assert (published[f"{experts}.1.w3.weight"] == 7).all()


def test_persistent_buffers_are_published(tmp_path: Path) -> None:
    make_family(tmp_path, "deepseek_v3")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert checkpoint_views(load(tmp_path))[name] == TensorView(name, (8,), (1,), 0)


def test_a_tied_head_stands_once(tmp_path: Path) -> None:
    make_family(tmp_path, "qwen3")
    model = load(tmp_path)
    assert "lm_head.weight" not in checkpoint_views(model)
    assert tied_checkpoint_names(model) == {"lm_head.weight": "model.embed_tokens.weight"}


def test_views_hold_for_a_state_that_lies_within_larger_memory() -> None:
    views = {"b": TensorView("a", (2, 2), (3, 1), 1)}
    state = {"a": torch.arange(10.0)[4:]}
    assert in_checkpoint_format(state, views)["b"].tolist() == [[5, 6], [8, 9]]


def test_a_checkpoint_in_several_files_is_compared_as_a_whole(tmp_path: Path) -> None:
    make_family(tmp_path / "whole", "qwen3_moe")
    model = load(tmp_path / "whole")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert not (tmp_path / WEIGHTS).exists()
    assert checkpoint_views(load(tmp_path)) == checkpoint_views(model)
    part = min(tmp_path.glob("model-*.safetensors"))
    save_file(load_file(part) | {"surplus": torch.ones(1)}, part, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="not be published as they are: 1 of them: surplus"):
        load(tmp_path)


def test_a_folder_of_pickles_is_loaded_without_a_comparison(tmp_path: Path) -> None:
    make_family(tmp_path, "llama")
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    assert len(checkpoint_views(load(tmp_path))) == 21


@pytest.mark.parametrize(
    ("family", "removed"),
    [
        ("llama", "lm_head.weight"),
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias"),
        ("qwen3", "model.embed_tokens.weight"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, family: str, removed: str) -> None:
    make_family(tmp_path, family)
    change_weights(tmp_path, removed)
    with pytest.raises(ConfigError, match="lacks weights, which would be made up at random: ") as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_checkpoint_without_one_of_its_experts_is_refused(tmp_path: Path) -> None:
    make_family(tmp_path, "qwen3_moe")
    change_weights(tmp_path, "model.layers.0.mlp.experts.3.up_proj.weight")
    with pytest.raises(ConfigError, match=r"cannot be loaded: .* conversion of the weights"):
        load(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    make_family(tmp_path, "llama")
    change_config(tmp_path, intermediate_size=48)
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.down_proj\.weight \(64, 96\), not \(64, 48\)"):
        load(tmp_path)


def test_weights_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    make_family(tmp_path, "llama")
    (tmp_path / WEIGHTS).write_bytes(b"none")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(tmp_path)


def test_a_tensor_that_would_not_be_published_is_refused(tmp_path: Path) -> None:
    make_family(tmp_path, "llama")
    change_weights(tmp_path, **{"value_head.weight": torch.ones(1, 64)})
    with pytest.raises(ConfigError, match=r"\(llama\) has tensors that would not be published .* value_head\.weight"):
        load(tmp_path)


def test_layers_that_predict_further_tokens_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_family(tmp_path, "deepseek_v3")
    change_weights(tmp_path, **{"model.layers.61.eh_proj.weight": torch.ones(64, 128)})
    assert not any(".61." in name for name in checkpoint_views(load(tmp_path)))
    assert "1 tensors are no part of the model, as model.layers.61.eh_proj.weight" in caplog.text


def test_rotary_tables_of_older_checkpoints_are_left_out(tmp_path: Path) -> None:
    make_family(tmp_path, "llama")
    change_weights(tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    assert len(checkpoint_views(load(tmp_path))) == 21


@pytest.mark.parametrize("also_embedding", [False, True])
def test_a_tied_tensor_may_have_either_name_or_both_in_a_checkpoint(tmp_path: Path, also_embedding: bool) -> None:
    make_family(tmp_path, "qwen3")
    embedding = "model.embed_tokens.weight"
    head = load_file(tmp_path / WEIGHTS)[embedding]
    change_weights(tmp_path, *() if also_embedding else (embedding,), **{"lm_head.weight": head.clone()})
    assert torch.equal(
        in_checkpoint_format(load(tmp_path).state_dict(), {"e": TensorView(embedding, (1,), (1,), 0)})["e"], head[0, :1]
    )
    assert embedding in checkpoint_views(load(tmp_path))


def test_a_head_of_its_own_that_the_configuration_ties_is_refused(tmp_path: Path) -> None:
    make_family(tmp_path, "qwen3")
    change_weights(tmp_path, **{"lm_head.weight": torch.ones(128, 64)})
    with pytest.raises(ConfigError, match="set tie_word_embeddings to false"):
        load(tmp_path)


def test_a_checkpoint_under_the_names_in_memory_stays_under_them(tmp_path: Path) -> None:
    make_family(tmp_path / "model", "qwen3_moe")
    load(tmp_path / "model").save_pretrained(tmp_path, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in checkpoint_views(load(tmp_path))


def model_with(folder: Path, *operations: Any, sources: list[str], targets: list[str]) -> Any:
    """A Llama that would have been loaded by these operations of transformers."""
    make_family(folder, "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model._weight_conversions = [WeightConverter(sources, targets, list(operations))]
    return model


def test_a_tensor_whose_elements_are_reordered_in_memory_is_refused(tmp_path: Path) -> None:
    name = "self_attn.q_proj.weight"
    permuted = PermuteForRope(permute_layer_names=[name])
    model = model_with(tmp_path, permuted, sources=[name], targets=[name])
    with pytest.raises(ConfigError, match=r"tensor model\.layers\.0\.self_attn\.q_proj\.weight of a llama model"):
        checkpoint_views(model)


def test_a_tensor_that_is_several_in_memory_is_refused(tmp_path: Path) -> None:
    parts = [f"self_attn.{part}_proj.weight" for part in ("q", "k", "v")]
    model = model_with(tmp_path, Chunk(dim=0), sources=["self_attn.qkv_proj.weight"], targets=parts)
    with pytest.raises(
        ConfigError, match=r"tensor model\.layers\.0\.self_attn\.qkv_proj\.weight of a llama checkpoint"
    ):
        checkpoint_views(model)


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    make_family(tmp_path, "llama")
    change_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigError) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    make_family(tmp_path, "llama")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    model.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ConfigError, match=r"the model \(llama\) is quantized"):
        checkpoint_views(model)
