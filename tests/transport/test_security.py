from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError
from dcpo_async.transport.security import check_address, load_client_keys, load_server_keys
from dcpo_async.transport.zmq_channel import generate_keys


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:5557",
        "tcp://127.8.0.1:*",
        "tcp://localhost:0",
        "tcp://[::1]:5557",
        "ipc:///tmp/learner.sock",
    ],
)
def test_an_address_on_this_machine_needs_no_keys(address: str) -> None:
    check_address(address, has_keys=False, insecure=False)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:5557",
        "tcp://*:5557",
        "tcp://gpu-1:5557",
        "tcp://[2001:db8::1]:5557",
        "tcp://localhost.x:1",
    ],
)
def test_an_address_off_this_machine_needs_keys_or_the_users_word(address: str) -> None:
    with pytest.raises(ConfigError, match=r"dcpo keygen.*--insecure"):
        check_address(address, has_keys=False, insecure=False)
    check_address(address, has_keys=True, insecure=False)
    check_address(address, has_keys=False, insecure=True)


@pytest.mark.parametrize(
    "address",
    ["", "5557", "localhost:5557", "tcp://localhost", "http://localhost:1", "tcp://a/b:1", "ipc://"],
)
def test_a_malformed_address_is_refused_with_the_allowed_forms(address: str) -> None:
    with pytest.raises(ConfigError, match=r"tcp://host:port or ipc://path"):
        check_address(address, has_keys=True, insecure=True)


def test_a_port_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="port 70000 does not exist"):
        check_address("tcp://localhost:70000", has_keys=False, insecure=False)


def test_both_sides_load_what_keygen_wrote(tmp_path: Path) -> None:
    generate_keys(tmp_path / "keys")
    server, client = load_server_keys(tmp_path / "keys"), load_client_keys(tmp_path / "keys")
    assert (server.client_public, server.public) == (client.public, client.server_public)
    assert len({server.public, server.secret, client.public, client.secret}) == 4


def test_only_the_owner_can_read_secrets_and_they_are_never_printed(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {
        "server.public": 0o644,
        "server.secret": 0o600,
        "client.public": 0o644,
        "client.secret": 0o600,
    }
    assert load_server_keys(tmp_path).secret.decode() not in repr(load_server_keys(tmp_path))


def test_keys_that_exist_are_never_replaced(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    before = load_server_keys(tmp_path)
    with pytest.raises(ConfigError, match=r"server\.public exists"):
        generate_keys(tmp_path)
    assert load_server_keys(tmp_path) == before


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    (tmp_path / "client.secret").chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 640\); run chmod 600"):
        load_client_keys(tmp_path)


def test_a_missing_or_damaged_key_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.public: No such file"):
        load_server_keys(tmp_path)
    generate_keys(tmp_path)
    (tmp_path / "server.public").write_text("not a key")
    with pytest.raises(ConfigError, match=r"server\.public holds no key"):
        load_server_keys(tmp_path)
