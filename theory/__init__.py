"""The theory: a stylised model of prefix learning, its kernels, its training, and verdicts on the theorem."""

from ntkprefix._extras import extra

with extra("theory", "theory"):
    from theory.config import Config as Config
    from theory.data import Data as Data
    from theory.data import make_data as make_data
    from theory.dynamics import OPTIMIZERS as OPTIMIZERS
    from theory.dynamics import Trajectory as Trajectory
    from theory.dynamics import train as train
    from theory.infinite import Prediction as Prediction
    from theory.infinite import predict_infinite as predict_infinite
    from theory.kernels import as_matrix as as_matrix
    from theory.kernels import finite_ntk as finite_ntk
    from theory.kernels import infinite_ntk as infinite_ntk
    from theory.linearised import model_ntk as model_ntk
    from theory.linearised import predict_linearised as predict_linearised
    from theory.model import init_stylized as init_stylized
    from theory.model import stylized_model as stylized_model
    from theory.verdicts import Finding as Finding
    from theory.verdicts import Verdict as Verdict
    from theory.verify import Report as Report
    from theory.verify import verify as verify
