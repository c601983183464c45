"""Adapters in the files of the PyTorch library PEFT, both ways: LoRA and prefix tuning of text models."""

from ntkprefix.adapters.peft.files import load_peft, save_peft

__all__ = ["load_peft", "save_peft"]
