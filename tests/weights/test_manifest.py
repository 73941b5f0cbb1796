"""Manifests read back as written, and refuse what a hostile or broken server could send."""

import json

import pytest

from dcpo_async.errors import WeightsError
from dcpo_async.records import STRETCH_BYTES
from dcpo_async.weights.manifest import FileEntry, Manifest, TensorEntry

DIGEST = "99aa06d3014798d86001c324468d497f"
MANIFEST = Manifest(
    weights_version=12,
    run_id="demo-1",
    incarnation=3,
    step=40,
    base_version=None,
    dtype="float32",
    files=(FileEntry(name="model.safetensors", num_bytes=8, digests=(DIGEST,)),),
    tensors=(TensorEntry(name="embed.weight", dtype="float32", shape=(2, 3), digest=DIGEST),),
    tied={"head.weight": "embed.weight"},
)


def changed(**fields: object) -> str:
    return json.dumps(json.loads(MANIFEST.to_json()) | fields)


def patch(base: int, version: int) -> dict[str, object]:
    return {"base_version": base, "weights_version": version, "num_bytes": 5, "digests": [DIGEST]}


def with_file(name: str) -> str:
    return changed(files=[{"name": name, "num_bytes": 8, "digests": [DIGEST]}])


def test_a_manifest_reads_back_as_it_was_written() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(MANIFEST.to_json().encode()) == MANIFEST


@pytest.mark.parametrize(
    "name",
    [
        *("../config.json", "/etc/config.json", "a/b.json", "a\\b.json", ".", "..", "...", "", ".json", "-x.json"),
        "manifest.json",
        "config.json\n",
        "a\0.json",
        "model.bin",
        "modeling.py",
        "x" * 200 + ".json",
    ],
)
def test_a_file_name_that_is_not_plain_or_could_be_executed_is_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="plain name"):
        Manifest.from_json(with_file(name))


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "chat_template.jinja", "v12.patch"])
def test_names_of_model_files_are_allowed(name: str) -> None:
    assert Manifest.from_json(with_file(name)).files[0].name == name


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", '"x"', "\ud800"),
        changed(weights_version=0),
        changed(weights_version="12"),
        changed(weights_version=12.0),
        changed(weights_version=True),
        changed(step=-1),
        changed(base_version=12),
        changed(base_version=0),
        changed(run_id=""),
        changed(surprise=1),
        changed(tied={"head.weight": "missing.weight"}),
        changed(tied={"embed.weight": "embed.weight"}),
        changed(files=[{"name": "a.json", "num_bytes": -1, "digests": []}]),
        changed(files=[{"name": "a.json", "num_bytes": 1, "digests": [DIGEST[:-1]]}]),
        changed(files=[{"name": "a.json", "num_bytes": 1, "digests": [DIGEST.upper()]}]),
        changed(files=[{"name": "a.json", "num_bytes": 1, "digests": [DIGEST]}] * 2),
        changed(files=[{"name": "a.json", "num_bytes": 1, "digests": []}]),
        changed(files=[{"name": "a.json", "num_bytes": 0, "digests": [DIGEST]}]),
        changed(files=[{"name": "a.json", "num_bytes": STRETCH_BYTES, "digests": [DIGEST] * 2}]),
        changed(files=[{"name": "a.json", "num_bytes": STRETCH_BYTES + 1, "digests": [DIGEST]}]),
        changed(files=[{"name": "a.json", "num_bytes": 1, "digest": DIGEST}]),
        changed(patches=[patch(10, 11)]),
        changed(patches=[patch(11, 12), patch(10, 11)]),
        changed(patches=[patch(9, 10), patch(11, 12)]),
        changed(patches=[patch(12, 12)]),
        changed(patches=[patch(10, 11), patch(11, 10), patch(10, 12)]),
        changed(patches=[patch(11, 12) | {"digests": []}]),
        changed(patches=[patch(11, 12) | {"name": "other.patch"}]),
        changed(weights_version=100, patches=[patch(n, n + 1) for n in range(35, 100)]),
        changed(tensors=[{"name": "w", "dtype": "float32", "shape": [-1], "digest": DIGEST}]),
    ],
)
def test_anything_malformed_is_a_weights_error(text: str) -> None:
    with pytest.raises(WeightsError, match="malformed weights manifest"):
        Manifest.from_json(text)


def test_a_patch_names_an_earlier_base() -> None:
    assert Manifest.from_json(changed(base_version=11)).base_version == 11


def test_patches_are_a_chain_that_leads_to_the_version() -> None:
    manifest = Manifest.from_json(changed(patches=[patch(8, 11), patch(11, 12)]))
    assert [entry.name for entry in manifest.patches] == ["00000011.patch", "00000012.patch"]
    assert Manifest.from_json(manifest.to_json()) == manifest
