"""Run folders: one run at a time, nothing left of one that was killed, and refused before anything is computed."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from ntkprefix import runs
from ntkprefix.cli import main
from ntkprefix.commands import compress, train
from ntkprefix.run_folder import one_at_a_time, prepare_folder, run_folder
from theory import measure

NOBODY = 65534


@pytest.fixture
def readonly():
    """A folder in which one may look and not write, also where the tests are run as root."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "readonly"
        folder.mkdir()
        os.chmod(place, 0o755)
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        yield folder
        if root:
            os.seteuid(0)
        os.chmod(folder, 0o755)


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    with (
        run_folder(tmp_path / "run") as folder,
        pytest.raises(BlockingIOError, match=f"^{folder}: expected a folder that no other run is writing to, but one"),
        run_folder(folder),
    ):
        pass
    with run_folder(folder):
        pass


def test_a_run_that_was_killed_is_no_obstacle(tmp_path):
    program = "import os, signal, sys; from ntkprefix.run_folder import run_folder\n"
    program += "with run_folder(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    with run_folder(tmp_path):
        pass


def test_what_was_half_written_is_removed_and_nothing_else(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: None)  # as far as a run comes that is killed now
        for folder in (tmp_path, tmp_path / "pieces"):
            runs.write_bytes(folder / "a.json", b"half")
            (folder / ".mine.partial").write_text("")
    assert len(list(tmp_path.rglob("*.ntkprefix-partial"))) == 2
    with run_folder(tmp_path):
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".mine.partial", ".mine.partial", "pieces"]


def stop(*_, **__):
    pytest.fail("something was computed")


BEFORE = {
    "train": (train, "job_of", ["train", "--out"]),
    "verify": (measure, "make_setting", ["verify", "--quick", "--out"]),
    "compress": (compress, "load_text_model", ["compress", "--prompt", __file__, "--out"]),
}


@pytest.mark.parametrize("command", BEFORE)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(command, readonly, monkeypatch, capsys):
    module, name, arguments = BEFORE[command]
    monkeypatch.setattr(module, name, stop)
    assert main([*arguments, str(readonly / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"ntkprefix {command}: {readonly}")
    assert "Permission denied" in told
    assert "hoose another" in told


def test_a_folder_is_no_place_for_a_compressed_prompt(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compress, "load_text_model", stop)
    assert main(["compress", "--prompt", __file__, "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot be written (Is a directory)" in capsys.readouterr().err


def test_a_compressed_prompt_does_not_take_the_prompt_s_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compress, "load_text_model", stop)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("a manual")
    assert main(["compress", "--prompt", str(prompt), "--out", str(tmp_path / "." / "prompt.txt")]) == 2
    assert "expected another file than the prompt's to write to. Choose another --out." in capsys.readouterr().err
    assert prompt.read_text() == "a manual"


def test_what_is_no_file_is_not_replaced_by_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compress, "load_text_model", stop)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main(["compress", "--prompt", __file__, "--out", str(pipe)]) == 2
    assert f"{pipe}: cannot be written (it is there, and no file)" in capsys.readouterr().err
    with pytest.raises(OSError, match="pipe: cannot be written"):
        runs.write_bytes(pipe, b"1")
    assert pipe.is_fifo()


def test_a_report_that_cannot_be_written_is_named(tmp_path, capsys):
    file = Path(__file__).parents[1] / "experiments" / "results" / "scale.json"
    page = tmp_path / "file" / "page.html"
    page.parent.write_text("")
    assert main(["report", str(file), "--out", str(page)]) == 2
    assert f"{page}: cannot be written (File exists)" in capsys.readouterr().err


def test_what_cannot_be_written_is_named(readonly):
    path = readonly / "file"
    for write in (lambda: runs.write_bytes(path, b""), lambda: runs.write_json(path, {}), lambda: runs.JsonLines(path)):
        with pytest.raises(OSError, match=rf"{path}: cannot be written \(Permission denied\)"):
            write()
    with pytest.raises(OSError, match=f"{readonly}: cannot be made a run folder"):
        prepare_folder(readonly)


def test_a_line_that_does_not_fit_is_an_error_that_names_the_file(tmp_path):
    lines = runs.JsonLines(tmp_path / "metrics.jsonl")
    lines.path.unlink()
    lines.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
        lines.add(step=1)


def test_one_at_a_time_waits_for_its_turn(tmp_path):
    entered, order = threading.Event(), []

    def second():
        with one_at_a_time(tmp_path):
            order.append("second")
        entered.set()

    with one_at_a_time(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not entered.wait(0.2)
        order.append("first")
    assert entered.wait(10)
    waiting.join()
    assert order == ["first", "second"]
