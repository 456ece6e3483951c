"""The keys of a server."""

import hashlib
import json
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, DataError
from pipeline.serving.keys import Keys


def test_a_key_is_known_by_its_name(tmp_path):
    keys = Keys(tmp_path)
    key = keys.make("Anna")
    assert key.startswith("pal-") and len(key) > 40
    assert keys.name_of(key) == "Anna"
    assert keys.names() == ["Anna"]


def test_the_file_holds_hashes_only_and_belongs_to_its_owner(tmp_path):
    folder = tmp_path / "state"
    keys = Keys(folder)
    key = keys.make("Anna")
    path = folder / "keys.json"
    assert key not in path.read_text()
    assert json.loads(path.read_text()) == {
        "keys": [{"name": "Anna", "sha256": hashlib.sha256(key.encode()).hexdigest()}]
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_can_read_becomes_private(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    Keys(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_keys_made_and_removed_by_another_process_count_at_once(tmp_path):
    server, command = Keys(tmp_path), Keys(tmp_path)
    key, other = command.make("Anna"), command.make("Ben")
    assert (server.name_of(key), server.name_of(other)) == ("Anna", "Ben")
    command.remove("Anna")
    assert (server.name_of(key), server.name_of(other)) == (None, "Ben")


def test_a_name_is_given_once(tmp_path):
    keys = Keys(tmp_path)
    key = keys.make("Anna")
    with pytest.raises(ConfigError, match="there is a key 'Anna'"):
        keys.make("Anna")
    keys.remove("Anna")
    assert keys.make("Anna") != key
    assert keys.name_of(key) is None


@pytest.mark.parametrize("name", ["", " Anna", "Anna\n", "a\x1b[2J", "a" * 101])
def test_a_name_is_a_line(tmp_path, name):
    with pytest.raises(ConfigError, match="a key's name is a line"):
        Keys(tmp_path).make(name)


def test_no_key_is_removed_twice(tmp_path):
    with pytest.raises(ConfigError, match="there is no key 'Anna'"):
        Keys(tmp_path).remove("Anna")


@given(st.text(st.characters(exclude_categories=())))
def test_no_other_text_is_a_key(tmp_path_factory, text):
    keys = Keys(tmp_path_factory.mktemp("keys"))
    keys.make("Anna")
    assert keys.name_of(text) is None


def test_keys_made_at_the_same_time_are_all_there(tmp_path):
    threads = [threading.Thread(target=Keys(tmp_path).make, args=(f"key {number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Keys(tmp_path).names()) == 20


def test_a_write_that_fails_leaves_the_keys_as_they_are(tmp_path, monkeypatch):
    keys = Keys(tmp_path)
    key = keys.make("Anna")

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fails)
        with pytest.raises(OSError, match="No space"):
            keys.make("Ben")
    assert keys.name_of(key) == "Anna"
    assert Keys(tmp_path).names() == ["Anna"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_file_is_no_empty_one(tmp_path):
    Keys(tmp_path).make("Anna")
    (tmp_path / "keys.json").write_text('{"keys": [')
    with pytest.raises(DataError, match="keys.json is damaged"):
        Keys(tmp_path).name_of("pal-x")
