import pytest

from dcpo_async.errors import ConfigError
from dcpo_async.transport.security import check_address


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
