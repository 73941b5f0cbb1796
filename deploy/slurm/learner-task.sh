#!/usr/bin/env bash
# What each node of the learner's job runs.
set -euo pipefail

words=(--gpus "0-$((SLURM_GPUS_ON_NODE - 1))" --network.listen tcp://0.0.0.0:5557)
if ((SLURM_NNODES > 1)); then
    words+=(--nodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --rendezvous "$DCPO_FIRST_HOST:29500")
fi
if ((SLURM_NODEID == 0)); then
    exec dcpo-learner "$@" "${words[@]}" --keys "$DCPO_KEYS"
fi
# Node 0 waits for a machine whose launcher was killed, as for want of memory, and srun does not start it again.
stopped=0
trap 'stopped=1' TERM INT
while true; do
    code=0
    dcpo-learner "$@" "${words[@]}" --keys "$DCPO_KEYS/peers/node-$SLURM_NODEID.keys" || code=$?
    if ((code <= 128 || stopped)); then
        exit "$code"
    fi
    echo "node $SLURM_NODEID ended with code $code, and is started again" >&2
    sleep "${DCPO_PAUSE:-10}"
done
