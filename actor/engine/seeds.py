"""The seed of a group of responses."""

import hashlib


def group_seed(run_seed: int, prompt_id: str, visit: int) -> int:
    """The seed of one visit of a prompt, the same for every attempt at it and on every machine.

    Response j of the group draws its noise from this seed + j; seeds of different visits are 62-bit digests, so their
    ranges do not meet in practice.

    Args:
        run_seed: seed of the run.
        prompt_id: digest of the prompt.
        visit: 1 for the first visit.

    Returns:
        A number in [0, 2**62), such as 3856273325243849225 for group_seed(7, "p", 1).
    """
    digest = hashlib.blake2b(f"{run_seed}:{visit}:{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
