"""Result files: whole or absent, and named when they are bad."""

import json
import math
import os
import stat
import subprocess
import threading

import pytest

from ntkprefix import runs


def test_json_makes_the_round_trip(tmp_path):
    path = runs.write_json(tmp_path / "new" / "folder" / "results.json", {"a": [1, 2.5, None]})
    assert runs.read_json(path) == {"a": [1, 2.5, None]}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = runs.write_json(tmp_path / "results.json", {"good": True})

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        runs.write_json(path, {"good": False})
    assert runs.read_json(path) == {"good": True}
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.write_json(tmp_path / "results.json", {"loss": math.nan})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"[1]", b"[" * 100_000])
def test_a_bad_file_is_an_error_with_its_name(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json: expected"):
        runs.read_json(path)


def test_the_message_ends_in_what_the_caller_advises(tmp_path):
    path = tmp_path / "results.json"
    for content in ("{", "[1]"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"results\.json: expected .* Delete it to start afresh\.$"):
            runs.read_json(path)
        with pytest.raises(ValueError, match=r"results\.json: expected .*[).a-z] Mend it\.$"):
            runs.read_json(path, advice="Mend it.")


@pytest.mark.parametrize("read", [runs.read_json, runs.read_json_lines, runs.JsonLines])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_has_no_end_is_not_read(kind, read, tmp_path):
    path = tmp_path / "results.json"
    if kind == "device":
        path.symlink_to("/dev/null")  # which has an end, where a failure would wait for ever
    elif kind == "pipe":
        os.mkfifo(path)
        # Closed in the end, so that a failure ends too.
        threading.Timer(2, os.close, [os.open(path, os.O_RDWR)]).start()
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"results\.json: expected a file, got a folder, a device or a pipe\. Name"):
        read(path)


def test_files_have_ordinary_permissions(tmp_path):
    umask = os.umask(0o022)
    try:
        path = runs.write_json(tmp_path / "results.json", {})
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_environment_is_json_and_names_the_device():
    environment = runs.environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["packages"]["jax"]
    assert environment["device"]


def test_the_commit_is_dirty_when_code_differs_and_not_when_results_do(tmp_path, monkeypatch):
    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True, capture_output=True)

    git("init")
    for name in ("package/code.py", "experiments/results/a.json", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "all")
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "package" / "runs.py"))
    clean = runs.environment()["commit"]
    assert len(clean) == 12
    for name in ("experiments/results/a.json", "README.md"):
        (tmp_path / name).write_text("2")
    assert runs.environment()["commit"] == clean
    (tmp_path / "package" / "code.py").write_text("2")
    assert runs.environment()["commit"] == f"{clean}-dirty"
