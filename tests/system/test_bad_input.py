"""Whatever a user gets wrong is answered with one line on stderr and exit code 2."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest
import zmq

from dcpo_async.devices import count_gpus
from dcpo_async.protocol.codec import PREVIOUS_VERSION, Frame, decode, encode
from dcpo_async.protocol.messages import PROTOCOL_VERSION, Envelope, Reject
from dcpo_async.transport.key_files import write_peer_keys
from dcpo_async.transport.zmq_channel import new_pair
from tests.protocol.made_session import hello
from tests.system.services import Services, two_free_ports, write_problems
from tests.tiny_model import write_tokenizer
from tests.transport.keys import learner_keys

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MODULES = {"dcpo": "dcpo_async.commands.cli", "dcpo-learner": "learner.launcher", "dcpo-actor": "actor.launcher"}

BAD_INPUTS = {
    "an unknown setting in the file": (
        "dcpo-learner {folder}/unknown.toml",
        "{folder}/unknown.toml: training.learning_rat: unknown setting",
    ),
    "an unknown setting on the command line": (
        "dcpo-learner {config} --training.learning_rat 1",
        "training.learning_rat: unknown setting; did you mean training.learning_rate?",
    ),
    "a check on another machine than node 0": (
        "dcpo-learner {config} --workers 1 --nodes 2 --node-rank 1 --rendezvous HOST:{port} --keys {folder} --check",
        "--check on node 0 alone, which has the settings: here it would take part in the run",
    ),
    "a value out of bounds": (
        "dcpo-learner {config} --sampling.group_size 1",
        "sampling.group_size: Input should be greater than or equal to 2, found '1'",
    ),
    "settings that contradict each other": (
        "dcpo-learner {config} --lag.max_lag 0 --lag.publish_interval 4",
        "lag.max_lag 0 is less than lag.publish_interval - algorithm.updates_per_batch = 3",
    ),
    "a configuration file that is missing": (
        "dcpo-learner {folder}/none.toml",
        "{folder}/none.toml: no such configuration file",
    ),
    "a model that is missing": (
        "dcpo-learner {config} --model.path {folder}/none",
        "model.path {folder}/none: no such folder",
    ),
    "a model folder without config.json": (
        "dcpo-learner {config} --model.path {folder}/no-model",
        "model.path {folder}/no-model: no config.json in it",
    ),
    "a data set that is missing": (
        "dcpo-learner {config} --data.source {folder}/none.jsonl",
        "data file {folder}/none.jsonl does not exist",
    ),
    "a data set that is empty": (
        "dcpo-learner {config} --data.source {folder}/empty.jsonl",
        "data set {folder}/empty.jsonl is empty",
    ),
    "a data set that is malformed": (
        "dcpo-learner {config} --data.source {folder}/malformed.jsonl",
        "{folder}/malformed.jsonl, line 2: malformed JSON",
    ),
    "a preset that does not exist": (
        "dcpo-learner {config} --data.source gsm9k={folder}/few.jsonl",
        "'gsm9k={folder}/few.jsonl' names no problems; give one of dapo-math-17k, gsm8k, gsm8k-test",
    ),
    "levels of a data set without levels": (
        "dcpo-learner {config} --data.source {folder}/few.jsonl --data.levels 3,4",
        "levels [3, 4] are asked for, but no row of {folder}/few.jsonl has a level in level or source",
    ),
    "training prompts that are problems of an evaluation set": (
        "dcpo-learner {config} --data.evaluation amc23={folder}/few.jsonl",
        "19 of 40 prompts of data are problems of evaluation sets (19 of the 19 of amc23); leave them out with "
        "--data.contamination drop",
    ),
    "a data set that is smaller than the admission window": (
        "dcpo-learner {config} --data.source {folder}/few.jsonl --folder {folder}/few",
        "data.source has 19 usable prompts, fewer than the admission window of 20 = ",
    ),
    "prompts and responses that are longer than the model's context": (
        "dcpo-learner {config} --check --sampling.max_response_tokens 230",
        "takes 256 tokens, data.max_prompt_tokens 32 and sampling.max_response_tokens 230 are 262; "
        "--sampling.max_response_tokens 224 would fit",
    ),
    "a tokenizer that is larger than the embedding": (
        "dcpo-learner {config} --check --model.path {folder}/large-tokenizer",
        "model {folder}/large-tokenizer: the tokenizer has ids up to 69, the embedding 64 rows",
    ),
    "GPUs of another machine without a check": (
        "dcpo-learner {config} --on 4x80",
        "--on 4x80 needs --check",
    ),
    "a port that is taken": (
        "dcpo-learner {config} --network.listen tcp://127.0.0.1:{taken_port}",
        "tcp://127.0.0.1:{taken_port} is in use",
    ),
    "an address that others can reach, without keys": (
        "dcpo-learner {config} --network.listen tcp://0.0.0.0:{port}",
        "tcp://0.0.0.0:{port} is not on this machine alone, and no keys are given",
    ),
    "a learner elsewhere, without keys": (
        "dcpo-actor --learner tcp://192.0.2.1:{port}",
        "tcp://192.0.2.1:{port} is not on this machine alone, and no keys are given",
    ),
    "keys that are not there": (
        "dcpo-actor --keys {folder}/node-1.keys",
        "{folder}/node-1.keys: No such file or directory; `dcpo keygen` writes keys",
    ),
    "the folder of the learner's keys for an actor": (
        "dcpo-actor --keys {folder}/no-model",
        "{folder}/no-model is a folder; --keys takes the file of this peer alone, KEYS/peers/NAME.keys",
    ),
    "a folder without keys": (
        "dcpo-learner {config} --keys {folder}/no-model",
        "{folder}/no-model/server.public: No such file or directory; `dcpo keygen` writes keys",
    ),
    "keys of an actor without those of the learner": (
        "dcpo keygen {folder}/no-model --actor node-1",
        "{folder}/no-model/server.public: No such file or directory; `dcpo keygen` writes keys",
    ),
    "a relay to ask, with keys and without its own": (
        "dcpo-actor --keys {folder}/one.keys --weights-from tcp://10.0.0.7:5560",
        "tcp://10.0.0.7:5560: write tcp://HOST:PORT/KEY",
    ),
    "a range of GPUs that runs backwards": (
        "dcpo-learner {config} --gpus 3-1",
        "--gpus 3-1: the range 3-1 runs backwards",
    ),
    "a range of an actor's GPUs that runs backwards": (
        "dcpo-actor --gpus 3-1",
        "--gpus 3-1: the range 3-1 runs backwards",
    ),
    "a learner that does not answer": (
        "dcpo-actor --engine scripted --learner tcp://127.0.0.1:{port} --join-seconds 3",
        "no answer from the learner at tcp://127.0.0.1:{port} within 3 s",
    ),
    "a learner of a newer protocol version": (
        "dcpo-actor --engine scripted --learner tcp://127.0.0.1:{newer_port}",
        "the learner at tcp://127.0.0.1:{newer_port}: the peer speaks protocol version "
        f"{PROTOCOL_VERSION + 1}, this side speaks {PROTOCOL_VERSION}: "
        "upgrade dcpo-async on this side",
    ),
    "a learner that is on another run now": (
        "dcpo-actor --engine scripted --learner tcp://127.0.0.1:{other_port}",
        "this learner is on run b, the peer on run a",
    ),
}
"""Command and what it says, after its name."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[dict[str, object]]:
    """What stands in braces above: a good configuration, things with something wrong, ports."""
    folder = tmp_path_factory.mktemp("bad")
    with (
        Services(folder, model) as services,
        socket.create_server(("127.0.0.1", two_free_ports())) as taken,
        answering(lambda _: of_version(PROTOCOL_VERSION + 1, other_run())) as newer_port,
        answering(lambda _: encode(other_run())) as other_port,
    ):
        (folder / "unknown.toml").write_text("[training]\nlearning_rat = 1\n")
        (folder / "no-model").mkdir()
        shutil.copy(write_peer_keys(learner_keys(folder / "keys"), "one", "actor", new_pair()), folder / "one.keys")
        (folder / "empty.jsonl").touch()
        (folder / "malformed.jsonl").write_text('{"problem": "1+1=", "answer": "2"}\n{"problem": \n')
        write_problems(folder / "few.jsonl", 19)
        shutil.copytree(model, folder / "large-tokenizer")
        write_tokenizer(folder / "large-tokenizer", 70)
        large = json.loads((model / "config.json").read_text()) | {"hidden_size": 4096, "intermediate_size": 16384}
        shutil.copytree(model, folder / "large", ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "large" / "config.json").write_text(json.dumps(large | {"head_dim": 2048}))
        config = services.config.read_text()
        (folder / "large.toml").write_text(config.replace(str(model), str(folder / "large")))
        yield {
            "folder": folder,
            "config": services.config,
            "port": services.port,
            "taken_port": taken.getsockname()[1],
            "newer_port": newer_port,
            "other_port": other_port,
        }


@pytest.fixture(scope="module")
def refusals(places: dict[str, object]) -> Iterator[dict[str, Future[str]]]:
    """Every command above, two at a time: most of what they take is the import of torch."""
    with ThreadPoolExecutor(2) as pool:
        commands = {name: command.format(**places) for name, (command, _) in BAD_INPUTS.items()}
        yield {name: pool.submit(refusal, command) for name, command in commands.items()}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused_in_one_line(
    name: str, refusals: dict[str, Future[str]], places: dict[str, object]
) -> None:
    assert BAD_INPUTS[name][1].format(**places) in refusals[name].result()


@pytest.mark.parametrize("command", ["dcpo-learner {config} --gpus 0-3", "dcpo-actor --gpus 0-3"])
def test_gpus_that_are_not_there_are_refused_in_one_line(command: str, places: dict[str, object]) -> None:
    if count_gpus() > 3:
        pytest.skip("this machine has the GPUs 0 to 3")
    assert refusal(command.format(**places)).startswith("--gpus 0-3: this machine has ")


def test_a_check_says_what_a_run_takes_and_writes_nothing(places: dict[str, object]) -> None:
    ended = run("dcpo-learner {config} --check".format(**places))
    assert ended.returncode == 0, ended.stderr
    for said in (
        "admission window: 20 prompts = 5 steps",
        "each process: ",
        "  optimizer ",
        "tokens: ",
        "the run fits",
    ):
        assert said in ended.stdout
    assert len(re.findall(r"^prompt ", ended.stdout, re.MULTILINE)) == 3
    assert not (Path(str(places["folder"])) / "run").exists()


def test_a_run_that_does_not_fit_is_refused_with_what_would(places: dict[str, object]) -> None:
    ended = run("dcpo-learner {folder}/large.toml --check --on 2x8".format(**places))
    assert ended.returncode == 2
    assert " GB of each of 2 GPUs (weights " in ended.stderr
    assert ended.stderr.endswith(" would fit\n")
    assert "each GPU: " in ended.stdout


def run(command: str) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    name, *words = command.split()
    argv = [sys.executable, "-m", MODULES[name], *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)


def refusal(command: str) -> str:
    """The one line that a command says before it ends with exit code 2; lines of its log may stand before it."""
    name, ended = command.split()[0], run(command)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    said = [line for line in ended.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\d \d\d:", line)]
    assert len(said) == 1, ended.stderr
    assert said[0].startswith(f"{name}: ")
    return said[0].removeprefix(f"{name}: ")


# ---- raw frames, as a peer of another make would send them


def other_run() -> Envelope:
    """What a learner on another run answers."""
    return Envelope(Reject(reason="run_id", detail="this learner is on run b, the peer on run a"), run_id="b")


def of_version(version: int, envelope: Envelope) -> list[Frame]:
    """An envelope as a peer of that protocol version would send it."""
    header, *arrays = encode(envelope)
    return [msgpack.packb(msgpack.unpackb(header) | {"v": version}), *arrays]


@contextmanager
def answering(answer: Callable[[Sequence[bytes]], Sequence[Frame]]) -> Iterator[int]:
    """A port where a router answers every message."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            if router.poll(100):
                peer, *frames = router.recv_multipart()
                router.send_multipart([peer, *answer(frames)])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield port
    finally:
        ended.set()
        thread.join()
        context.destroy(linger=0)


def asked(address: str, frames: Sequence[Frame]) -> Envelope:
    """What a learner answers to raw frames."""
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(address)
        dealer.send_multipart(frames)
        assert dealer.poll(20_000), f"{address} did not answer"
        return decode(dealer.recv_multipart(), max_message_bytes=1 << 20)
    finally:
        context.destroy(linger=0)


def test_a_learner_refuses_strangers_in_words_and_another_data_set_in_its_folder(tmp_path: Path, model: Path) -> None:
    stranger = hello()
    with Services(tmp_path, model) as services:
        learner = services.start_learner("--lag.max_lag", "0")
        services.until("the learner", lambda: "actors reach it at" in learner.log)
        older = asked(services.address, of_version(PREVIOUS_VERSION - 1, Envelope(stranger))).message
        strayed = asked(services.address, encode(Envelope(stranger, run_id="elsewhere-1"))).message
        learner.signal(signal.SIGKILL)
        learner.process.wait(10)
        write_problems(tmp_path / "few.jsonl", 19)
        said = refusal(f"dcpo-learner {services.config} --lag.max_lag 0 --data.source {tmp_path}/few.jsonl")
    assert isinstance(older, Reject)
    assert older.reason == "protocol_version"
    assert older.detail == (
        f"the peer speaks protocol version {PREVIOUS_VERSION - 1}, this side speaks {PROTOCOL_VERSION} and "
        f"{PREVIOUS_VERSION}: "
        "upgrade dcpo-async on the peer"
    )
    assert isinstance(strayed, Reject)
    assert strayed.reason == "run_id"
    assert re.search(r"this learner is on run run-\w+, the peer on run elsewhere-1", strayed.detail)
    assert "the run in this folder has data" in said
    assert "train on the same problems, by the same tokenizer, template and arguments" in said
