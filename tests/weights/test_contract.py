"""The names that others import from the package."""

import torch

from dcpo_async.weights import apply_patch, encode_patch


def test_patches_are_made_and_applied_by_the_names_of_the_package() -> None:
    base, new = {"w": torch.zeros(9)}, {"w": torch.arange(9.0)}
    assert torch.equal(apply_patch(base, encode_patch(base, new))["w"], new["w"])
