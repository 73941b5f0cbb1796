from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from dcpo_async.adapters import PREFIX, merged, rank_of, scale_of
from dcpo_async.errors import WeightsError
from dcpo_async.weights.tensor_file import ADAPTER_CONFIG, ADAPTER_NAME, WEIGHTS_NAME, map_tensors
from tests.tiny_model import make_tiny_model

ONE = {"layer.weight": torch.tensor([[1.0, 2.0]]), "other.weight": torch.tensor([7.0])}


def matrices(module: str = "layer") -> dict[str, torch.Tensor]:
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.tensor([[3.0, 4.0]]),
        f"{PREFIX}{module}.lora_B.weight": torch.tensor([[5.0]]),
    }


def test_the_scaled_product_of_the_matrices_is_added_and_other_weights_stay() -> None:
    found = dict(merged(ONE, matrices(), 0.5))
    assert found["layer.weight"].tolist() == [[8.5, 12.0]]
    assert found["other.weight"] is ONE["other.weight"]


def test_the_sum_is_rounded_once_to_the_type_of_the_weight() -> None:
    base = {"layer.weight": torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)}
    (weight,) = dict(merged(base, matrices(), 2**-9)).values()
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, torch.tensor([[1 + 15 / 512, 2 + 20 / 512]]).bfloat16())


@pytest.mark.parametrize(
    "adapter",
    [
        matrices("unknown"),
        {name: tensor for name, tensor in matrices().items() if "lora_A" in name},
        {name: tensor for name, tensor in matrices().items() if "lora_B" in name},
        {"base_model.model.layer.lora_magnitude_vector": torch.zeros(1)},
    ],
)
def test_an_adapter_of_another_model_or_kind_is_refused(adapter: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match="other matrices than for the weights of this model"):
        dict(merged(ONE, adapter, 1.0))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no adapter configuration"):
        rank_of(tmp_path)
    (tmp_path / ADAPTER_CONFIG).write_text('{"r": 4}')
    with pytest.raises(WeightsError, match="KeyError: 'lora_alpha'"):
        scale_of(tmp_path)


def test_merged_weights_are_those_of_pefts_own_merge(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    made = get_peft_model(model, LoraConfig(r=3, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    made.save_pretrained(tmp_path / "adapter")

    adapter = map_tensors(tmp_path / "adapter" / ADAPTER_NAME)
    assert (rank_of(tmp_path / "adapter"), scale_of(tmp_path / "adapter")) == (3, 8 / 3)
    found = dict(merged(map_tensors(tmp_path / "model" / WEIGHTS_NAME), adapter, 8 / 3))

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)
        assert torch.equal(found[name], map_tensors(tmp_path / "model" / WEIGHTS_NAME)[name]) == ("_proj" not in name)
