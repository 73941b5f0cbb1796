from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError
from dcpo_async.transport.key_files import load_peer_keys, load_server_keys, revoke, write_peer_keys, write_server_keys
from dcpo_async.transport.zmq_channel import new_pair
from tests.transport.keys import admit, learner_keys


def test_each_peer_has_keys_of_its_own_and_the_learner_knows_them_apart(tmp_path: Path) -> None:
    keys = learner_keys(tmp_path / "keys")
    one, two, watcher = admit(keys, "node-1"), admit(keys, "node-2"), admit(keys, "watcher", "evaluator")
    server = load_server_keys(keys)
    assert one.server_public == two.server_public == server.public
    secrets = {server.secret, *(peer.secret for peer in (one, two, watcher))}
    assert len(secrets | {server.public, *(peer.public for peer in (one, two, watcher))}) == 8
    found = {(holder.name, holder.role, holder.key.encode()) for holder in server.admission.holders}
    assert found == {(peer.name, peer.role, peer.public) for peer in (one, two, watcher)}
    assert {name for name, role, _ in found if role == "evaluator"} == {"watcher"}


def test_a_peers_file_holds_its_own_secret_and_no_other(tmp_path: Path) -> None:
    keys = learner_keys(tmp_path)
    one, two = admit(keys, "one"), admit(keys, "two")
    text = (tmp_path / "peers" / "one.keys").read_text()
    assert one.secret.decode() in text
    for secret in (load_server_keys(keys).secret, two.secret):
        assert secret.decode() not in text


def test_only_the_owner_can_read_secrets_or_admit_anybody_and_secrets_are_never_printed(tmp_path: Path) -> None:
    peer = admit(learner_keys(tmp_path), "one")
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "server.public": 0o644,
        "server.secret": 0o600,
        "admitted": 0o700,
        "admitted/one.key": 0o600,
        "peers": 0o700,
        "peers/one.keys": 0o600,
    }
    assert load_server_keys(tmp_path).secret.decode() not in repr(load_server_keys(tmp_path))
    assert peer.secret.decode() not in repr(peer)


def test_keys_that_exist_are_never_replaced(tmp_path: Path) -> None:
    keys = learner_keys(tmp_path)
    before = admit(keys, "one"), load_server_keys(keys).secret
    with pytest.raises(ConfigError, match=r"server\.public exists"):
        write_server_keys(keys, new_pair())
    with pytest.raises(ConfigError, match=r"one\.key exists; `dcpo revoke .* one` makes room for new keys"):
        write_peer_keys(keys, "one", "actor", new_pair())
    assert before == (load_peer_keys(tmp_path / "peers" / "one.keys"), load_server_keys(keys).secret)


def test_a_name_is_free_again_once_its_keys_are_revoked(tmp_path: Path) -> None:
    keys = learner_keys(tmp_path)
    before = admit(keys, "one")
    revoke(keys, "one")
    assert load_server_keys(keys).admission.holders == []
    with pytest.raises(ConfigError, match=r"'one' is not admitted in .*; admitted are: none"):
        revoke(keys, "one")
    assert admit(keys, "one").public != before.public


@pytest.mark.parametrize("name", ["", "../one", ".one", "a b", "a" * 65, 'a"', "a\n"])
def test_a_name_that_could_be_mistaken_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a peer"):
        write_peer_keys(learner_keys(tmp_path), name, "actor", new_pair())
    with pytest.raises(ConfigError, match="is not admitted"):
        revoke(tmp_path, name)


@pytest.mark.parametrize("which", ["server.secret", "peers/one.keys"])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, which: str) -> None:
    admit(learner_keys(tmp_path), "one")
    (tmp_path / which).chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 640\); run chmod 600"):
        _ = load_server_keys(tmp_path) if which == "server.secret" else load_peer_keys(tmp_path / which)


def test_a_list_of_admitted_keys_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (learner_keys(tmp_path) / "admitted").chmod(0o770)
    with pytest.raises(ConfigError, match=r"admitted can be changed by others \(mode 770\)"):
        load_server_keys(tmp_path)


def test_a_missing_or_damaged_key_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.public: No such file"):
        load_server_keys(tmp_path)
    with pytest.raises(ConfigError, match=r"server\.public: No such file"):
        write_peer_keys(tmp_path, "one", "actor", new_pair())
    admit(learner_keys(tmp_path), "one")
    (tmp_path / "server.public").write_text("not a key")
    with pytest.raises(ConfigError, match=r"server\.public holds no key"):
        load_server_keys(tmp_path)
    (tmp_path / "peers" / "one.keys").write_bytes(b"\xff\0")
    with pytest.raises(ConfigError, match=r"one\.keys holds no key"):
        load_peer_keys(tmp_path / "peers" / "one.keys")


def test_keys_that_all_actors_share_are_refused_with_the_way_to_new_ones(tmp_path: Path) -> None:
    learner_keys(tmp_path)
    (tmp_path / "client.public").write_text("k" * 40)
    with pytest.raises(ConfigError, match=r"`dcpo keygen KEYS`, and keys of its own for each peer .*--actor NAME"):
        load_server_keys(tmp_path)
    with pytest.raises(ConfigError, match=r"takes the file of this peer alone, KEYS/peers/NAME\.keys"):
        load_peer_keys(tmp_path)
