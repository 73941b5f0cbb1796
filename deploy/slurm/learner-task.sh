#!/usr/bin/env bash
# What each node of the learner's job runs.
set -euo pipefail

words=(--gpus "0-$((SLURM_GPUS_ON_NODE - 1))" --network.listen tcp://0.0.0.0:5557)
if ((SLURM_NNODES > 1)); then
    words+=(--nodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --rendezvous "$DCPO_FIRST_HOST:29500")
fi
if ((SLURM_NODEID == 0)); then
    words+=(--keys "$DCPO_KEYS")
else
    words+=(--keys "$DCPO_KEYS/peers/node-$SLURM_NODEID.keys")
fi
exec dcpo-learner "$@" "${words[@]}"
