"""`dcpo export`: a published version of a run as a model folder with a card, on disk or on the hub."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from dcpo_async import __version__
from dcpo_async.adapters.version import write_merged
from dcpo_async.durable import publish_folder
from dcpo_async.errors import ConfigError, WeightsError
from dcpo_async.run_folder import RunFolder
from dcpo_async.weights import places
from dcpo_async.weights.locks import hold, let_go
from dcpo_async.weights.manifest import MANIFEST_NAME, Manifest, base_of, read_manifest
from dcpo_async.weights.store import model_digest, newest_policy, verify

CARD_NAME = "README.md"
_ELSEWHERE = ("folder", "network", "actor", "checkpoint")
"""Tables of settings that say where and how it ran, not what was trained."""
_HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")


def export_to(run: Path, version: int | None, folder: Path) -> Manifest:
    """Write a version as a model folder, every byte checked, with a card; returns its manifest.

    Args:
        run: run folder; a learner may work on it.
        version: a weights version that stands there; None for the newest.
        folder: is made; an empty one may be there.

    Raises:
        ConfigError: there is no such version, or something stands at the folder.
        WeightsError: the version is damaged, or cannot be copied.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already, and is not replaced; name another folder")
    with _held(run, version) as source:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            writing = Path(tempfile.mkdtemp(prefix=f".writing-{folder.name}-", dir=folder.parent))
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written ({error.strerror}); name another folder") from None
        try:
            manifest = _staged(run, source, writing)
            writing.chmod(0o755)
            publish_folder(writing, folder)
        except OSError as error:
            raise WeightsError(f"{folder} cannot be written: {error}") from error
        finally:
            shutil.rmtree(writing, ignore_errors=True)
    return manifest


def push_to(run: Path, version: int | None, repo: str, *, is_public: bool) -> tuple[Manifest, str]:
    """Upload a version with its card to a repository of the hub, which is made if it is not there.

    Args:
        run, version: as `export_to` has them.
        repo: OWNER/NAME, or NAME of the token's owner.
        is_public: whether it may be seen by everybody: else it is made private, and one that is public is refused.

    Returns:
        The manifest, and the address of the commit.

    Raises:
        ConfigError: there is no such version, the repository is public, or the hub refuses.
        WeightsError: the version is damaged.
    """
    with _held(run, version) as source, tempfile.TemporaryDirectory(prefix="dcpo-export-", dir=run) as folder:
        manifest = _staged(run, source, Path(folder))
        hub = HfApi()
        try:
            name = hub.create_repo(repo, private=not is_public, exist_ok=True).repo_id
            if not is_public and not hub.model_info(name).private:
                raise ConfigError(f"{repo} is there already, for everybody to see; name another, or say --public")
            what = f"{manifest.run_id}: step {manifest.step}, weights version {manifest.weights_version}"
            commit = hub.upload_folder(repo_id=name, folder_path=folder, commit_message=what)
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{repo} cannot be pushed: {reason[:400]}; is there a token (HF_TOKEN)?") from None
    return manifest, str(commit.commit_url)


@contextmanager
def _held(run: Path, version: int | None) -> Iterator[Path]:
    """The folder of a version, which a learner that works on the run does not remove meanwhile."""
    store = RunFolder(run).weights
    wanted = newest_policy(store) if version is None else version
    there = ", ".join(map(str, places.versions(store))) or "none"
    lock = None if wanted is None else hold(places.version_folder(store, wanted))
    if wanted is None or lock is None:
        raise ConfigError(
            f"{run}: no weights version {'' if version is None else version} in it; there are {there}. Versions go as "
            "lag.keep_versions says; `dcpo eval --keep-best` keeps a copy of the best"
        )
    try:
        yield places.version_folder(store, wanted)
    finally:
        let_go(lock)


def _staged(run: Path, source: Path, folder: Path) -> Manifest:
    """Copy a version, check every byte of the copy, and put its card in the place of its manifest.

    Of an adapter's version the model is written, with the adapter added to its weights.
    """
    described = read_manifest(source)
    if described.is_base:
        raise ConfigError(f"{source} is the model that an adapter is trained for, untrained; name another --version")
    try:
        if described.base_version is not None:
            verify(source)
            verify(base_of(source))
            write_merged(source, described, merged := folder / ".merged")
            for path in merged.iterdir():
                path.rename(folder / path.name)
            merged.rmdir()
        else:
            for path in source.iterdir():
                shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise WeightsError(f"{source} cannot be copied: {error}") from error
    manifest = verify(folder)
    (folder / MANIFEST_NAME).unlink()
    (folder / CARD_NAME).write_text(model_card(manifest, _settings(run), model_digest(folder)), encoding="utf-8")
    return manifest


def _settings(run: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(RunFolder(run).config.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run}: its settings cannot be read: {error}") from None
    return settings


def model_card(manifest: Manifest, settings: Mapping[str, Any], digest: str) -> str:
    """The card of a version: what it is, how it was trained, and by which digest it is known. Markdown for the hub.

    Args:
        settings: of the run's last start, as its config.json has them; of paths the last part alone is told.
        digest: of weights, configuration and tokenizer, as `dcpo eval` and every actor tell it.
    """
    path = str(settings["model"]["path"])
    cached = _HUB_CACHE.search(path)
    base = f"{cached[1]}/{cached[2]}" if cached else Path(path).name
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [dcpo, reinforcement-learning]"]
    if cached:
        head.append(f"base_model: {base}")
    shown = {name: _without_paths(table) for name, table in settings.items() if name not in _ELSEWHERE}
    rows = {
        "run": manifest.run_id,
        "optimizer step": manifest.step,
        "weights version": manifest.weights_version,
        "type": manifest.dtype.removeprefix("torch."),
        "trained from": base,
        "digest of weights, configuration and tokenizer": digest,
        "made by": f"dcpo-async {__version__}",
    }
    lines = ["---", *head, "---", "", f"# {manifest.run_id}, step {manifest.step}", ""]
    lines += ["Trained by reinforcement learning from verifiable rewards (DCPO, arXiv 2509.02333).", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
    lines += ["## Settings", "", "Of the run's last start:", "", "```json", json.dumps(shown, indent=2), "```", ""]
    return "\n".join(lines)


def _without_paths(value: Any) -> Any:
    """Settings with absolute paths cut to their last part: they say something of the machine, not of the model."""
    if isinstance(value, dict):
        return {name: _without_paths(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    name, equals, path = value.partition("=") if isinstance(value, str) else ("", "", "")
    if equals and path.startswith("/"):
        return f"{name}={Path(path).name}"
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
