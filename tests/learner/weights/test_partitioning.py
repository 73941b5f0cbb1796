"""Two real ranks read models parameter by parameter, and keep their shares of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from learner.weights.loading import loaded_model
from tests.learner.ranks import run_ranks
from tests.tiny_families import make_family

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

RANK = "tests.learner.weights.partitioned_rank"
WEIGHTS = "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


async def test_each_rank_has_its_share_of_the_weights_to_the_bit(tmp_path: Path) -> None:
    for family in ("qwen2", "qwen3", "qwen3_moe", "deepseek_v3", "gemma2"):
        make_family(tmp_path / f"model-{family}", family)
    # In the files' own type nothing is converted, and parameters would be pages of the file.
    make_family(tmp_path / "model-bfloat16", "qwen2")
    tensors = load_file(tmp_path / "model-bfloat16" / WEIGHTS)
    save(tmp_path / "model-bfloat16", {name: tensor.bfloat16() for name, tensor in tensors.items()})
    # A tied tensor under both of its names, which are compared before they are one.
    make_family(tmp_path / "model-both-names", "qwen3")
    tensors = load_file(tmp_path / "model-both-names" / WEIGHTS)
    save(tmp_path / "model-both-names", tensors | {HEAD: tensors[EMBEDDING].clone()})
    await run_ranks(RANK, tmp_path, "weights", folder=tmp_path)


async def test_a_broken_folder_is_refused_in_the_same_words(tmp_path: Path) -> None:
    for name, family in (("lacking", "llama"), ("misshaped", "llama"), ("surplus", "llama"), ("untied", "qwen3")):
        make_family(tmp_path / f"model-{name}", family)
    lacking, misshaped, surplus, untied = (
        load_file(tmp_path / f"model-{name}" / WEIGHTS) for name in ("lacking", "misshaped", "surplus", "untied")
    )
    del lacking["model.layers.1.mlp.up_proj.weight"]
    save(tmp_path / "model-lacking", lacking)
    save(tmp_path / "model-misshaped", misshaped | {"model.layers.0.mlp.up_proj.weight": torch.ones(8, 64)})
    save(tmp_path / "model-surplus", surplus | {"value_head.weight": torch.ones(1, 64)})
    save(tmp_path / "model-untied", untied | {HEAD: untied[EMBEDDING] + 1})
    log = await run_ranks(RANK, tmp_path, "refusals", folder=tmp_path)
    assert "has a head of its own; set tie_word_embeddings to false" in log
    told = (tmp_path / "log").read_text()
    assert "1 of them: model.layers.1.mlp.up_proj.weight" in told
    assert "model.layers.0.mlp.up_proj.weight (8, 64), not (96, 64)" in told
    assert "has tensors that would not be published as they are: 1 of them: value_head.weight" in told


async def test_training_steps_are_those_of_a_model_that_was_loaded_whole(tmp_path: Path) -> None:
    for family in ("qwen2", "qwen3"):
        make_family(tmp_path / f"model-{family}", family)
    make_family(tmp_path / "model-adapter", "qwen2")
    await run_ranks(RANK, tmp_path, "steps", folder=tmp_path)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_every_parameter_is_taken_over_before_the_next_is_read(tmp_path: Path, family: str) -> None:
    make_family(tmp_path, family)
    taken = list[torch.nn.Parameter]()
    model = loaded_model(tmp_path, torch.bfloat16, taken.append)
    at_the_end = len(list(model.parameters()))
    early, late = taken[:-at_the_end], taken[-at_the_end:]
    assert [id(parameter) for parameter in late] == [id(parameter) for parameter in model.parameters()]
    small_and_tied = {name for name, p in model.named_parameters() if p.dim() < 2 or p.shape == (128, 64)}
    waited = {name for name, p in model.named_parameters() if not any(p is other for other in early)}
    assert waited == small_and_tied
