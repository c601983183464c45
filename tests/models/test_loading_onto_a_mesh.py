"""Weights from files onto several devices."""

import dinov2_folders
import tiny_text
from simulated_devices import on_devices


def test_no_device_holds_more_than_its_part(tmp_path):
    vision = dinov2_folders.write_folder(tmp_path / "vision", dinov2_folders.weights_of(dinov2_folders.tiny_golden()))
    text = tiny_text.write_folder(tmp_path / "text", "llama")
    on_devices("models/loading_on_two_devices.py", 2, str(text), str(vision))
