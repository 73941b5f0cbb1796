"""Activations of ranks that share a response's tokens: `python -m bench.memory.sharing --tokens 4096 --ranks 1 2`.

One response goes forward and backward through a random Qwen2 on real ranks over gloo, and the bytes of the tensors that
live are counted, as `--check` counts those of tensors without data; beside the peak stands that estimate.
"""

import argparse
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.memory.ranks import run_ranks
from learner.nodes.meeting import met
from learner.policy.fitting import fit_to_model
from learner.policy.model import PolicyModel
from learner.policy.packing import pack_sequences
from learner.policy.sequence_parallel import joined_sequence_group
from learner.ranks import MEETING_PLACE
from learner.sizing.rehearsal import counting, policy_without_data, rehearse

MB = 1e6
DEADLINE = timedelta(minutes=30)
MODEL = Qwen2Config(
    vocab_size=2048, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=2, max_position_embeddings=65536, tie_word_embeddings=False,
)  # fmt: skip


def main() -> None:
    """Start the ranks of each case; each case prints a line."""
    parser = argparse.ArgumentParser(prog="bench.memory.sharing", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096, help="of the response")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--case", type=int, help="of a run of this program: whether activations are computed again")
    options = parser.parse_args()
    if options.case is not None:
        measure(options.tokens, checkpointing=bool(options.case))
        return
    print("ranks, tokens, checkpointing: peak MB of each rank, estimated MB, seconds", flush=True)
    for checkpointing in (1, 0):
        for num_ranks in options.ranks:
            words = ["-m", "bench.memory.sharing", "--tokens", str(options.tokens), "--case", str(checkpointing)]
            run_ranks(num_ranks, words)


def measure(tokens: int, *, checkpointing: bool) -> None:
    """Count one rank's tensors; the first prints what all have found."""
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = met(os.environ[MEETING_PLACE], rank, num_ranks, DEADLINE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=DEADLINE)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(MODEL)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = PolicyModel(model, 1.0, joined_sequence_group(num_ranks, DEADLINE)).train()
    fit_to_model(policy, torch.device("cpu"))
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = pack_sequences([(torch.arange(tokens) * 7 % MODEL.vocab_size).tolist()])
    held = [*policy.parameters(), *policy.buffers(), *(p.grad for p in policy.parameters() if p.grad is not None)]
    began = time.monotonic()
    with counting(held) as live:
        policy(batch, lambda logprobs, _: logprobs.sum()).loss.backward()
    seconds = time.monotonic() - began
    peaks: list[int | None] = [None] * num_ranks
    dist.all_gather_object(peaks, live.peak)
    if rank == 0:
        own = -(-tokens // num_ranks)
        planned = rehearse(
            policy_without_data(MODEL, torch.float32), device="cpu", tokens=own, rows=own, checkpointing=checkpointing
        )
        found = " ".join(f"{peak / MB:.0f}" for peak in peaks if peak is not None)
        print(f"{num_ranks}, {tokens}, {checkpointing}: {found}, {planned.peak / MB:.0f}, {seconds:.1f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
