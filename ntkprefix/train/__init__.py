"""Training: one compiled step, data on the host, frozen weights shared and never copied."""

from ntkprefix._extras import extra

with extra("models", "ntkprefix.train"):
    from ntkprefix.train.checkpoints import Checkpoints
    from ntkprefix.train.config import TrainConfig
    from ntkprefix.train.loop import TrainResult, train
    from ntkprefix.train.memory import step_memory
    from ntkprefix.train.population import PopulationResult, train_population
    from ntkprefix.train.step import Loss

__all__ = [
    "Checkpoints",
    "Loss",
    "PopulationResult",
    "TrainConfig",
    "TrainResult",
    "step_memory",
    "train",
    "train_population",
]
