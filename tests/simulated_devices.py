"""Programs of this folder in processes with several devices: how many there are is settled when JAX starts."""

import os
import subprocess
import sys
from pathlib import Path


def simulated(count):
    """For the environment of a process with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def on_devices(script, count, *arguments):
    """Run a program on simulated devices."""
    command = [sys.executable, Path(__file__).parent / script, *arguments]
    run = subprocess.run(command, env=os.environ | simulated(count), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
