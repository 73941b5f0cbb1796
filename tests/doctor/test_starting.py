"""Faults before a start, each provoked: GPUs, NCCL, a broken model, keys that do not fit, what --check says."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcpo_async.doctor.command import diagnose
from dcpo_async.doctor.findings import Finding
from dcpo_async.doctor.gpus import asked, nccl
from dcpo_async.doctor.round_trip import loopback, peers
from dcpo_async.doctor.starting import model, refused
from dcpo_async.transport.key_files import write_peer_keys, write_server_keys
from dcpo_async.transport.zmq_channel import new_pair
from tests.tiny_model import make_tiny_model


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    assert finding.remedy
    assert "\n" not in finding.what
    return finding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, problems and settings of a run that could start."""
    folder = tmp_path_factory.mktemp("start")
    make_tiny_model(folder / "model", seed=0)
    rows = [{"problem": f"{i}+1=", "answer": str(i + 1)} for i in range(80)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.toml").write_text(
        f'folder = "{folder}/run"\n[model]\npath = "{folder}/model"\n[network]\nlisten = "tcp://127.0.0.1:0"\n'
        f'[data]\nsource = "{folder}/data.jsonl"\nmax_prompt_tokens = 32\nsystem_prompt = ""\n'
        "[sampling]\ngroup_size = 4\nmax_response_tokens = 16\n[training]\ngroups_per_step = 4\nmax_steps = 5\n"
    )
    return folder


def with_settings(folder: Path, *lines: str) -> Path:
    path = folder / "changed.toml"
    path.write_text("\n".join(lines))
    return path


def test_gpus_that_are_not_there_or_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    hidden = only(asked("0-3"))
    assert hidden.what == "--gpus 0-3: CUDA_VISIBLE_DEVICES=-1 hides every GPU"
    assert hidden.remedy.startswith("unset it")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert only(asked("0-3")).what == "--gpus 0-3: this machine has GPUs 0 to 1"
    assert not list(asked("0-1"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "this machine has no GPU" in only(asked("0")).what


def test_settings_of_nccl_that_name_what_is_not_there_or_contradict_each_other(tmp_path: Path) -> None:
    for name in ("net/eth0", "net/lo", "ib/mlx5_0"):
        (tmp_path / name).mkdir(parents=True)
    places = {"networks": tmp_path / "net", "rdma": tmp_path / "ib"}
    for name, value, leaves_none in (
        ("NCCL_SOCKET_IFNAME", "ib0", True),
        ("NCCL_SOCKET_IFNAME", "eth", False),
        ("NCCL_SOCKET_IFNAME", "=eth", True),
        ("NCCL_SOCKET_IFNAME", "^eth,lo", True),
        ("NCCL_SOCKET_IFNAME", "^docker", False),
        ("NCCL_IB_HCA", "mlx5_0:1", False),
        ("NCCL_IB_HCA", "=mlx4_0", True),
        ("GLOO_SOCKET_IFNAME", "eth", True),
        ("GLOO_SOCKET_IFNAME", "eth0", False),
    ):
        found = list(nccl({name: value}, **places))
        assert bool(found) == leaves_none, (name, value)
        assert not found or (found[0].severity == "error" and "this machine has" in found[0].what)
    contradiction = only(nccl({"NCCL_IB_DISABLE": "1", "NCCL_IB_HCA": "mlx5"}, **places))
    assert contradiction.what == "NCCL_IB_DISABLE=1 and NCCL_IB_HCA=mlx5 contradict each other"
    assert "talk over its network" in only(nccl({"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}, **places)).what
    assert not list(nccl({"NCCL_DEBUG": "WARN", "NCCL_IB_DISABLE": "0", "NCCL_IB_HCA": "mlx5"}, **places))
    assert not list(nccl({}, Path("/no/such"), Path("/no/such")))


def test_a_model_whose_files_are_broken_or_missing(folder: Path, tmp_path: Path) -> None:
    assert not list(model(str(folder / "model")))
    assert not list(model("Someone/On-The-Hub"))
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", folder / "model", copy], check=True)
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert f"model.safetensors is broken: its header places {len(whole)} bytes, it has" in only(model(str(copy))).what
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "has no header of a safetensors file" in only(model(str(copy))).what
    weights.write_bytes(whole)
    places = {"weight_map": {"lm_head.weight": "model.safetensors", "x": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(places))
    assert "lacks 1 files of its index, model-00002-of-00002.safetensors" in only(model(str(copy))).what
    (copy / "model.safetensors.index.json").unlink()
    weights.unlink()
    (copy / "tokenizer.json").write_text("{")
    broken, none = model(str(copy))
    assert "tokenizer.json cannot be read" in broken.what
    assert "has no weights in it" in none.what


def test_keys_that_do_not_fit_together(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    write_server_keys(folder, new_pair())
    file = write_peer_keys(folder, "node-1", "actor", new_pair())
    assert not [*loopback(None), *loopback(folder), *peers(folder)]
    (folder / "admitted" / "node-1.key").write_text(
        (folder / "admitted" / "node-1.key").read_text().replace("actor", "rank")
    )
    assert "is actor's, and admitted as rank's" in only(peers(folder)).what
    (folder / "admitted" / "node-1.key").unlink()
    assert f"the key in {file} is not admitted" in only(peers(folder)).what
    (folder / "server.public").write_bytes(new_pair()[0] + b"\n")
    assert "is for another learner" in only(peers(folder)).what
    assert "server.public is not of server.secret" in only(loopback(folder, seconds=0.5)).what


def test_what_the_learner_would_refuse_is_told_in_its_own_words(folder: Path) -> None:
    long = with_settings(folder, "[sampling]", "max_response_tokens = 4096")
    finding = only(refused([folder / "run.toml", long], None))
    assert finding.severity == "error"
    assert "4096" in finding.what


@pytest.mark.system
def test_a_machine_that_is_well_and_a_run_that_could_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("NCCL_", "GLOO_"))]:
        monkeypatch.delenv(name)
    # What this machine lacks for want of size is no fault of the run.
    words = ("GiB of memory", "GiB are free", "open files")
    found = [
        finding for finding in diagnose(configs=[folder / "run.toml"]) if not any(w in finding.what for w in words)
    ]
    assert found == []
    program = "import sys; from dcpo_async.commands.cli import main; main(sys.argv[1:])"
    words_of = [
        sys.executable,
        "-c",
        program,
        "doctor",
        str(folder / "run.toml"),
        "--keys",
        str(tmp_path / "none.keys"),
    ]
    done = subprocess.run([*words_of, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert any("dcpo keygen" in finding["remedy"] for finding in json.loads(done.stdout))
