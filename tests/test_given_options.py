"""Options as they are given: lists, paths, and the file of --config."""

import pytest

from ntkprefix.cli import main


@pytest.mark.parametrize("options", [["sweep", "--seeds"], ["sweep", "--seeds", "--epochs", "2"], ["plan", "--meshes"]])
def test_a_list_without_values_is_not_the_default(options, capsys):
    assert main(options) == 2
    assert "expected at least one value, got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["sweep", "--seeds", "0", "--seeds", "1"],
        ["generate", "--text=a", "--text=b"],
        ["plan", "--meshes", "--meshes"],
        ["sweep", "--learning_rates", "0.1", "--learning-rates", "0.2"],
    ],
)
def test_a_list_given_twice_is_not_its_last_part(options, capsys):
    assert main(options) == 2
    assert "expected it once, got it 2 times. Give all values behind one." in capsys.readouterr().err


@pytest.mark.parametrize("options", [["plan", "--config"], ["report"]])
def test_devices_are_not_read(options, capsys):
    assert main([*options, "/dev/null"]) == 2
    assert "/dev/null: expected a file, got a folder, a device or a pipe. Name a file.\n" in capsys.readouterr().err


def test_a_configuration_file_is_its_owners(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{")
    assert main(["plan", "--config", str(tmp_path / "a.json")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"ntkprefix plan: {tmp_path}/a.json: expected JSON")
    assert shown.endswith(" Mend it.\n")


def test_a_setting_in_two_spellings(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"batch_size": 8, "batch-size": 64}')
    assert main(["train", "--config", str(tmp_path / "a.json")]) == 2
    assert "a.json: expected batch_size once, got it twice, with - and with _." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["report", ""], "expected"),
        (["report", "runs/a", "", "--out", "a.html"], "expected"),
        (["report", "--out", "a.html", ""], "expected"),
        (["generate", "--prefix", "a", ""], "--prefix: expected"),
        (["compress", "--prompt=", "--out", "a"], "--prompt: expected"),
    ],
)
def test_empty_paths(options, named, capsys):
    assert main(options) == 2
    assert f"{named} a path, got an empty text. Give one, or leave it out." in capsys.readouterr().err


def test_empty_texts_are_no_paths(capsys):
    assert main(["generate", "--model", "nowhere", "--text", "a", ""]) == 2
    assert "a path" not in capsys.readouterr().err


def test_two_configuration_files(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    path = str(tmp_path / "a.json")
    assert main(["train", "--config", path, "--config", path]) == 2
    assert "--config: expected one file, got several" in capsys.readouterr().err
