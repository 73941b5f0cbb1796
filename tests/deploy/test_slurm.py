"""The scripts for SLURM, with stubs in place of its commands and of ours."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from learner.launcher import node_place, parsed
from tests.deploy.tools import lint

SLURM = Path(__file__).parents[2] / "deploy" / "slurm"
STUBS = {
    "scontrol": 'echo "$3" | tr "," "\\n"',
    # One task on each node, as srun starts them.
    "srun": '[[ $1 == --* ]] && shift; for ((n = 0; n < SLURM_NNODES; n++)); do SLURM_NODEID=$n "$@"; done',
    "dcpo-learner": 'echo "$@"',
    "dcpo-actor": 'echo "$@"',
}


def run(
    tmp_path: Path, script: str, *words: str, stubs: Mapping[str, str] = STUBS, **variables: str
) -> list[list[str]]:
    """The words that each node's service was started with."""
    for name, body in stubs.items():
        stub = tmp_path / name
        stub.write_text(f"#!/usr/bin/env bash\n{body}\n")
        stub.chmod(0o700)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DCPO_DEPLOY": str(SLURM),
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_SUBMIT_DIR": "/nowhere",
        **variables,
    }
    argv = ["bash", str(SLURM / script), *words]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_each_node_of_the_learner_knows_its_place_and_has_its_own_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "run.toml"
    config.write_text("seed = 5\n")
    nodes = run(
        tmp_path,
        "learner.sbatch",
        str(config),
        "--training.max_steps",
        "9",
        SLURM_NNODES="2",
        SLURM_JOB_NODELIST="a7,a9",
        DCPO_KEYS="/keys",
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    places = []
    for words in nodes:
        settings, devices, options = parsed(words)
        assert (settings.seed, settings.training.max_steps, devices.num_workers) == (5, 9, 8)
        place = node_place(devices, options)
        assert place is not None
        places.append((place.node, place.num_ranks, place.rendezvous, str(options.keys)))
    assert places == [(0, 16, "a7:29500", "/keys"), (1, 16, "a7:29500", "/keys/peers/node-1.keys")]


def test_a_launcher_that_is_killed_beside_node_0_comes_back(tmp_path: Path) -> None:
    # The first start of node 1 ends as one that is out of memory does.
    killed = 'echo "$@"; [[ "$*" != *"--node-rank 1"* || -e $0.was ]] || { touch "$0.was"; kill -KILL $$; }'
    nodes = run(
        tmp_path,
        "learner.sbatch",
        "run.toml",
        stubs={**STUBS, "dcpo-learner": killed},
        SLURM_NNODES="2",
        SLURM_JOB_NODELIST="a7,a9",
        DCPO_KEYS="/keys",
        DCPO_PAUSE="0",
    )
    assert [words[words.index("--node-rank") + 1] for words in nodes] == ["0", "1", "1"]


def test_a_learner_on_one_node_is_as_without_slurm(tmp_path: Path) -> None:
    (words,) = run(tmp_path, "learner.sbatch", "run.toml", SLURM_NNODES="1", SLURM_JOB_NODELIST="a7", DCPO_KEYS="/keys")
    assert words == ["run.toml", "--gpus", "0-7", "--network.listen", "tcp://0.0.0.0:5557", "--keys", "/keys"]


def test_each_task_of_the_array_is_an_actor_with_its_own_keys(tmp_path: Path) -> None:
    (words,) = run(tmp_path, "actors.sbatch", "a7", SLURM_NNODES="1", SLURM_ARRAY_TASK_ID="3", DCPO_KEYS="/keys")
    assert words == ["--gpus", "0-7", "--learner", "tcp://a7:5557", "--keys", "/keys/peers/actor-3.keys"]


def test_shellcheck_finds_nothing() -> None:
    lint("shellcheck", *sorted(SLURM.iterdir()))
