"""`dcpo export`: a whole model folder with a card, here or on the hub, and never what was not asked for."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcpo_async.commands.cli import main
from dcpo_async.config import RunConfig
from dcpo_async.weights.locks import hold, let_go
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import model_digest, write_snapshot
from tests.adapters.made import AdapterRun
from tests.commands.hub import Hub
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with versions 4 and 7, of a model from the hub's cache."""
    folder = tmp_path_factory.mktemp("run")
    model = folder / "cache/models--Owner--Small/snapshots/0123"
    model.mkdir(parents=True)
    make_tiny_model(model, seed=1)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    skeleton = folder / "skeleton"
    skeleton.mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            (skeleton / path.name).write_bytes(path.read_bytes())
    for version, step in ((4, 3), (7, 6)):
        write_snapshot(
            folder / "weights",
            weights_version=version,
            run_id="sums-01ab",
            incarnation=1,
            step=step,
            tensors={name: tensor + step for name, tensor in weights.items()},
            skeleton_folder=skeleton,
        )
    data = {"source": str(folder / "secret/own.jsonl")}
    config = RunConfig(folder=folder, model={"path": str(model), "dtype": "float32"}, data=data)  # type: ignore[arg-type]
    (folder / "config.json").write_text(config.model_dump_json())
    return folder


def test_a_version_becomes_a_model_folder_that_transformers_loads(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(run), "--version", "4", "--to", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: weights version 4 of sums-01ab, step 3\n"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    initial = AutoModelForCausalLM.from_pretrained(run / "cache/models--Owner--Small/snapshots/0123")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, initial.state_dict()[name] + 3), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("1+1=")
    assert not (tmp_path / "out/manifest.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_an_adapter_the_model_is_exported_with_the_adapter_in_it_and_the_frozen_model_never(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = AdapterRun(tmp_path / "run", run_id="sums-01ab")
    config = RunConfig(folder=made.folder, model={"path": str(tmp_path / "run/model")})  # type: ignore[arg-type]
    (made.folder / "config.json").write_text(config.model_dump_json())
    made.publish_base(1)
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(made.folder), "--to", str(tmp_path / "none")])
    made.publish_adapter(2, base_version=1)
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(made.folder), "--version", "1", "--to", str(tmp_path / "none")])
    assert "v00000001 is the model that an adapter is trained for, untrained" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(made.folder), "--to", str(tmp_path / "out")])
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    for name, tensor in made.model(2).state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert not [path for path in (tmp_path / "out").iterdir() if "adapter" in path.name or path.name[0] == "."]
    assert "digest of weights" in (tmp_path / "out/README.md").read_text()


def test_the_card_says_run_step_settings_and_digest_and_no_path_of_the_machine(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(run), "--to", str(tmp_path / "out")])
    card = (tmp_path / "out/README.md").read_text()
    for line in (
        "base_model: Owner/Small",
        "# sums-01ab, step 6",
        "| optimizer step | 6 |",
        "| weights version | 7 |",
        f"| digest of weights, configuration and tokenizer | {model_digest(tmp_path / 'out')} |",
        '    "source": "own.jsonl",',
        '    "epsilon_low": 0.16,',
    ):
        assert line in card.splitlines(), line
    assert str(run) not in card
    assert "secret" not in card


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--to", "{tmp}/out", "--version", "5"], "no weights version 5 in it; there are 4, 7"),
        (["--to", "{tmp}/full"], "full is there already, and is not replaced"),
        (["--to", "{tmp}/out", "--public"], "--public goes with --push"),
        (["--to", "{tmp}/full/note/out"], "cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    run: Path, tmp_path: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").write_text("kept")
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(run), *(word.format(tmp=tmp_path) for word in words)])
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    assert (tmp_path / "full/note").read_text() == "kept"


def test_a_folder_without_a_run_and_a_damaged_version_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(tmp_path), "--to", str(tmp_path / "out")])
    assert "no weights version  in it; there are none" in capsys.readouterr().err
    file = version_folder(run / "weights", 4) / "model.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(SystemExit, match="1"):
            main(["export", str(run), "--version", "4", "--to", str(tmp_path / "out")])
    finally:
        file.write_bytes(content)
    assert "does not match its digest" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_version_that_is_being_removed_is_not_there(run: Path, tmp_path: Path) -> None:
    descriptor = os.open(version_folder(run / "weights", 7), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(run), "--version", "7", "--to", str(tmp_path / "out")])
    finally:
        let_go(descriptor)
    held = hold(version_folder(run / "weights", 7))
    assert held is not None
    let_go(held)


# ---- the hub


def push(run: Path, hub: Hub, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As a user calls it; the hub's client reads its address when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "hf_of_this_test",
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    argv = [sys.executable, "-m", "dcpo_async.commands.cli", "export", str(run), *words]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=100)


def test_a_push_makes_a_private_repository_of_the_same_files(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(run), "--to", str(tmp_path / "out")])
    before = sorted(run.rglob("*"))
    with Hub() as hub:
        done = push(run, hub, tmp_path, "--push", "me/sums")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{hub.address}/me/sums/commit/1: weights version 7 of sums-01ab, step 6\n"
    assert hub.repositories == {"me/sums": True}
    assert hub.files["me/sums"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.messages == ["sums-01ab: step 6, weights version 7"]
    assert hub.tokens == {"Bearer hf_of_this_test"}
    assert sorted(run.rglob("*")) == before


def test_a_repository_that_everybody_sees_is_refused_unless_that_is_asked_for(run: Path, tmp_path: Path) -> None:
    with Hub(me__open=False) as hub:
        refused = push(run, hub, tmp_path, "--push", "me/open")
        assert (refused.returncode, hub.files) == (2, {})
        assert "dcpo: me/open is there already, for everybody to see; name another, or say --public" in refused.stderr
        pushed = push(run, hub, tmp_path, "--push", "me/open", "--public", "--version", "4")
        assert pushed.returncode == 0, pushed.stderr
    assert json.loads(hub.files["me/open"]["config.json"])["model_type"] == "llama"


def test_a_hub_that_refuses_is_one_line(run: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        refused = push(run, hub, tmp_path, "--push", "a/b/c")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("dcpo: a/b/c cannot be pushed: ")
