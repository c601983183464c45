"""Programs that run in an environment with PyTorch and without this package; they import each other by bare names."""
