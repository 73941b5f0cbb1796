from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.weights.model_folder import export_weights, write_skeleton
from tests.tiny_model import make_tiny_model


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
