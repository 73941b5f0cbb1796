"""The manifest of a weights version: which files and tensors it consists of, and the digest of each."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcpo_async.errors import WeightsError
from dcpo_async.records import STRETCH_BYTES
from dcpo_async.weights.canary import Canary
from dcpo_async.weights.places import base_folder

MANIFEST_NAME = "manifest.json"
MAX_PATCHES = 64

# A name is joined to a folder on the machine that fetches it, and the folder is then loaded as a model:
# hence no separators, no leading dots, and no kind of file that a loader would execute or unpickle.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,180}\.(safetensors|patch|json|jinja|txt|model|tiktoken)")

Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
_FROZEN = ConfigDict(extra="forbid", frozen=True, strict=True)


def is_publishable(name: str) -> bool:
    """Whether a file of this name may be part of a version."""
    return FILE_NAME.fullmatch(name) is not None and name != MANIFEST_NAME


class _Stretched(BaseModel):
    """Something that travels; each stretch of its bytes has a digest (`stretches.digest_of`)."""

    model_config = _FROZEN
    num_bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    digests: tuple[Digest, ...]

    @model_validator(mode="after")
    def _has_all_digests(self) -> Self:
        if len(self.digests) != -(-self.num_bytes // STRETCH_BYTES):
            raise ValueError(f"{len(self.digests)} digests for {self.num_bytes} bytes; each {STRETCH_BYTES} have one")
        return self


class FileEntry(_Stretched):
    """One file of a version.

    A stretch's digest is cryptographic: whoever has the manifest needs no trust in whoever sends the stretch.
    """

    name: str

    @model_validator(mode="after")
    def _has_plain_name(self) -> Self:
        if not is_publishable(self.name):
            raise ValueError(f"file name {self.name!r} is not a plain name matching {FILE_NAME.pattern}")
        return self


class PatchEntry(_Stretched):
    """A sparse patch from one version's weights file to another's, in the folder `patches` of a store."""

    base_version: Annotated[int, Field(ge=1)]
    weights_version: Annotated[int, Field(ge=2)]

    @property
    def name(self) -> str:
        """The patch's file: 00000012.patch leads to version 12."""
        return f"{self.weights_version:08d}.patch"


class TensorEntry(BaseModel):
    """One tensor of a version; its digest is the xxh3_128 of its elements' bytes in row-major order."""

    model_config = _FROZEN
    name: Name
    dtype: Name
    shape: tuple[Count, ...]
    digest: Digest


class Manifest(BaseModel):
    """What a weights version consists of, and where it comes from.

    Attributes:
        weights_version: publication number, from 1 up, never used twice in a run.
        step: optimizer steps behind these weights.
        base_version: the version whose frozen weights an adapter adds to; None for a whole model.
        is_base: these are such weights, and no policy by themselves: nothing is sampled from them.
        dtype: type of the learner's forward pass, as torch spells it.
        tied: further names of tensors that stand in `tensors` under another name, each with that name.
        patches: a chain of patches that leads here, oldest first, each from the version that the one before leads to.
        canary: log-probs under these weights, for the engine's proof; None where the writer has no model.
    """

    model_config = _FROZEN
    weights_version: Annotated[int, Field(ge=1)]
    run_id: Name
    incarnation: Count
    step: Count
    base_version: int | None
    is_base: bool = False
    dtype: Name
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]
    tied: Mapping[str, str]
    patches: Annotated[tuple[PatchEntry, ...], Field(max_length=MAX_PATCHES)] = ()
    canary: Canary | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        files = [entry.name for entry in self.files]
        tensors = [entry.name for entry in self.tensors]
        if len(set(files)) < len(files) or len(set(tensors)) < len(tensors):
            raise ValueError("a file or tensor is listed twice")
        if not set(self.tied.values()) <= set(tensors) or set(self.tied) & set(tensors):
            raise ValueError("a tied name must stand for a listed tensor and not be listed itself")
        if self.base_version is not None and not 1 <= self.base_version < self.weights_version:
            raise ValueError(f"base_version {self.base_version} is not before {self.weights_version}")
        if self.base_version is not None and self.is_base:
            raise ValueError("frozen weights have none below them")
        leads_to = [entry.weights_version for entry in self.patches]
        starts_at = [entry.base_version for entry in self.patches[1:]]
        if leads_to and leads_to != [*starts_at, self.weights_version]:
            raise ValueError(f"patches to {leads_to} from {starts_at} are no chain to {self.weights_version}")
        if any(entry.base_version >= entry.weights_version for entry in self.patches):
            raise ValueError("a patch leads to an earlier version")
        return self

    def to_json(self) -> str:
        """The manifest as JSON text; equal manifests give equal text."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read `to_json` text; raises WeightsError on anything malformed."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "manifest"
            raise WeightsError(f"malformed weights manifest: {where}: {first['msg']}") from error


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a version's folder; raises WeightsError where it is missing or malformed."""
    try:
        return Manifest.from_json((folder / MANIFEST_NAME).read_bytes())
    except OSError as error:
        raise WeightsError(f"no weights manifest in {folder}: {error.strerror}") from error


def base_of(folder: Path) -> Path:
    """Where the model of a version, or of any other model folder, lies: beside an adapter, else in the folder itself.

    Raises WeightsError where the manifest is malformed.
    """
    if not (folder / MANIFEST_NAME).exists():
        return folder
    return base_folder(folder, read_manifest(folder).base_version)
