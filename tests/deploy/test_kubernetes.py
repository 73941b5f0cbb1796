"""The recipes for Kubernetes: valid by its own schemas, without privileges, with words and keys that services take."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from actor.launcher import _parser
from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError
from dcpo_async.transport.key_files import load_server_keys, write_peer_keys, write_server_keys
from dcpo_async.transport.zmq_channel import new_pair
from learner.launcher import http_words, node_place, parsed
from tests.deploy.tools import DEPLOY

KUBERNETES = DEPLOY / "kubernetes"
FILES = [path for path in sorted(KUBERNETES.rglob("*.yaml")) if path.name not in ("kustomization.yaml", "first.yaml")]
Resource = dict[str, Any]


def resources() -> Iterator[Resource]:
    """All of them; of node 0 as it is alone."""
    for path in FILES:
        yield from yaml.safe_load_all(path.read_text())


def named(kind: str, name: str) -> Resource:
    (found,) = [one for one in resources() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> list[Resource]:
    return [one["spec"]["template"]["spec"] for one in resources() if "template" in one.get("spec", {})]


def words_of(kind: str, name: str, **variables: str) -> list[str]:
    """What a pod's service is started with, without its own name."""
    _, *words = named(kind, name)["spec"]["template"]["spec"]["containers"][0]["args"]
    for variable, value in variables.items():
        words = [word.replace(f"$({variable})", value) for word in words]
    return words


def first_of_several() -> list[str]:
    added = yaml.safe_load((KUBERNETES / "several-machines" / "first.yaml").read_text())
    return [*words_of("StatefulSet", "dcpo-learner"), *(one["value"] for one in added)]


# ---- what Kubernetes says


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_what_the_schemas_of_kubernetes_say(path: Path) -> None:
    validating = pytest.importorskip("kubernetes_validate", reason="make recipe-tools installs it")
    for resource in yaml.safe_load_all(path.read_text()):
        validating.validate(resource, "1.31", strict=True)


@pytest.mark.parametrize("folder", ["base", "several-machines"])
def test_kustomize_renders_them_and_the_result_is_valid(folder: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    validating = pytest.importorskip("kubernetes_validate", reason="make recipe-tools installs it")
    argv = ["kubectl", "kustomize", str(KUBERNETES / folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    for resource in rendered:
        validating.validate(resource, "1.31", strict=True)
    learners = [one for one in rendered if one["metadata"]["name"] == "dcpo-learner" and one["kind"] == "StatefulSet"]
    args = learners[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[1:] == (first_of_several() if folder == "several-machines" else words_of("StatefulSet", "dcpo-learner"))


# ---- what our services say


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")


def with_files(tmp_path: Path, words: list[str]) -> list[str]:
    """Words whose configuration and token are files that are here."""
    token = tmp_path / "token"
    token.write_text("t" * 64)
    here = {"/etc/dcpo/run.toml": str(KUBERNETES / "base" / "run.toml"), "/run/secrets/http/token": str(token)}
    return [here.get(word, word) for word in words]


def test_the_learner_takes_its_words_and_has_time_for_its_checkpoint(tmp_path: Path, eight_gpus: None) -> None:
    config, devices, options = parsed(with_files(tmp_path, words_of("StatefulSet", "dcpo-learner")))
    assert (str(config.folder), devices.num_workers, config.network.listen) == ("/data/run", 8, "tcp://0.0.0.0:5557")
    assert node_place(devices, options) is None
    assert http_words(options)[:2] == ["--http", "0.0.0.0:9557"]
    for pod in pods():
        if "dcpo-learner" in pod["containers"][0]["args"]:
            assert pod["terminationGracePeriodSeconds"] >= RunConfig().checkpoint.stop_seconds + 30


def test_machines_of_a_learner_know_their_places(tmp_path: Path, eight_gpus: None) -> None:
    ranks = named("StatefulSet", "dcpo-ranks")["spec"]
    places = []
    for words in (first_of_several(), words_of("StatefulSet", "dcpo-ranks", NODE_RANK=str(ranks["ordinals"]["start"]))):
        _, devices, options = parsed(with_files(tmp_path, words))
        place = node_place(devices, options)
        assert place is not None
        places.append((place.node, place.num_nodes, place.num_ranks, place.rendezvous, str(options.keys)))
    where = "dcpo-learner-0.dcpo-learner:29500"
    assert places == [(0, 2, 16, where, "/keys"), (1, 2, 16, where, "/keys/node-1.keys")]
    assert ranks["replicas"] == places[0][1] - 1


def test_actors_take_their_words_and_find_the_learner(eight_gpus: None) -> None:
    options = _parser().parse_args(words_of("Deployment", "dcpo-actor"))
    service = named("Service", "dcpo-learner")
    assert options.learner == f"tcp://dcpo-learner-0.{service['metadata']['name']}:5557"
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)


# ---- who may do what


def test_nothing_in_a_pod_has_privileges() -> None:
    assert len(pods()) == 3
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in (*pod["initContainers"], *pod["containers"]):
            context = container["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})
            assert context["readOnlyRootFilesystem"]
            assert "privileged" not in context
        for volume in pod["volumes"]:
            assert volume.keys() - {"name"} <= {"secret", "configMap", "emptyDir"}
            assert volume.get("secret", {"defaultMode": 0o400})["defaultMode"] == 0o400
        (shared,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == shared["name"]]
        assert volume["emptyDir"]["medium"] == "Memory"


def admitted_to(policy: str, port: int) -> set[str]:
    """Who reaches a port of the pods of a policy."""
    found = set[str]()
    for rule in named("NetworkPolicy", policy)["spec"]["ingress"]:
        if port in [one["port"] for one in rule.get("ports", [{"port": port}])]:
            found |= {json.dumps(peer, sort_keys=True) for peer in rule["from"]}
    names = ("dcpo-actor", "dcpo-ranks", "dcpo-learner", "monitoring")
    return {name for name in names for peer in found if f'"{name}"' in peer}


def test_only_who_needs_a_port_reaches_it() -> None:
    assert "ingress" not in named("NetworkPolicy", "nobody")["spec"]
    for port in (5557, 5558):
        assert admitted_to("learner", port) == {"dcpo-actor", "dcpo-ranks"}
    assert admitted_to("learner", 29501) == {"dcpo-ranks"}
    assert admitted_to("learner", 9557) == {"dcpo-ranks", "monitoring"}
    assert admitted_to("ranks", 40000) == {"dcpo-learner", "dcpo-ranks"}
    assert (admitted_to("actors", 5560), admitted_to("actors", 5557)) == ({"dcpo-actor"}, set())


# ---- keys


def write_as_kubernetes_does(volume: Path, files: dict[str, str], generation: int) -> None:
    """Lay out a Secret's volume: files stand in a folder that one link names, through which others lead to them."""
    stamped = volume / f"..generation-{generation}"
    stamped.mkdir(parents=True)
    volume.chmod(0o1777)
    stamped.chmod(0o2755)
    for name, text in files.items():
        (stamped / name).write_text(text)
        # With fsGroup the group may read, whatever defaultMode says.
        (stamped / name).chmod(0o440)
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    (volume / "..new").symlink_to(stamped.name)
    (volume / "..new").rename(volume / "..data")


async def test_keys_of_secrets_are_taken_and_a_change_of_who_is_admitted_counts_at_once(tmp_path: Path) -> None:
    keys = tmp_path / "made"
    write_server_keys(keys, new_pair())
    for name in ("actors", "spot"):
        write_peer_keys(keys, name, "actor", new_pair())
    admitted = {path.name: path.read_text() for path in (keys / "admitted").iterdir()}
    own = {name: (keys / name).read_text() for name in ("server.public", "server.secret")}
    volumes = {mount: tmp_path / mount.strip("/").replace("/", "-") for mount in MOUNTS}
    write_as_kubernetes_does(volumes["/run/secrets/dcpo"], own, 1)
    write_as_kubernetes_does(volumes["/run/dcpo/admitted"], admitted, 1)
    volumes["/keys"].mkdir()
    with pytest.raises(ConfigError, match="can be read by others"):
        load_server_keys(volumes["/run/secrets/dcpo"])
    pod = named("StatefulSet", "dcpo-learner")["spec"]["template"]["spec"]
    (script,) = [container["args"] for container in pod["initContainers"]]
    for _ in range(2):
        # A pod's second start finds what the first has left.
        run(script, volumes)
    admission = load_server_keys(volumes["/keys"]).admission
    assert {holder.name for holder in admission.holders} == {"actors", "spot"}
    write_as_kubernetes_does(volumes["/run/dcpo/admitted"], {"actors.key": admitted["actors.key"]}, 2)
    async with asyncio.timeout(60.0):
        while {holder.name for holder in admission.holders} != {"actors"}:
            await asyncio.sleep(0.1)
            admission.look()


MOUNTS = ("/run/secrets/dcpo", "/run/dcpo/admitted", "/keys")


def run(script: list[str], volumes: dict[str, Path]) -> None:
    """Run an init container's words, with other places for its volumes."""
    words = list(script)
    for mount, path in volumes.items():
        words[-1] = words[-1].replace(mount, str(path))
    subprocess.run(words, check=True, timeout=60)
