import shutil
from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError
from dcpo_async.model_folder import load_tokenizer, model_folder
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder, seed=1)
    return folder


def test_a_folder_is_taken_as_it_is(folder: Path) -> None:
    assert model_folder(str(folder), "model") == folder
    assert load_tokenizer(folder, "model").eos_token == "<eos>"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model /.*/none: no such folder; name an existing folder, or a hub id"):
        model_folder(str(tmp_path / "none"), "model")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json in it"):
        model_folder(str(tmp_path), "model.path")


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ConfigError, match="no tokenizer can be loaded from it"):
        load_tokenizer(tmp_path, "model")
