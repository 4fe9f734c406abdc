"""Training of potentials: force stage, bias stage, evaluation. Names are resolved on first use."""

from typing import TYPE_CHECKING

from ase_biasgrad.lazy import lazy_names

if TYPE_CHECKING:
    from ase_biasgrad.training.active.folder import LearnFolder
    from ase_biasgrad.training.active.jobs import Jobs
    from ase_biasgrad.training.active.learn import learn
    from ase_biasgrad.training.active.options import LearnOptions
    from ase_biasgrad.training.benchmarks.loop import TrainingOptions, load_network
    from ase_biasgrad.training.benchmarks.nbody.network import NBodyNetwork, rollout
    from ase_biasgrad.training.benchmarks.qm7.dense_stage import predict_dense, train_dense
    from ase_biasgrad.training.benchmarks.qm7.energy_stage import fit_energies
    from ase_biasgrad.training.config import ConfigError, TrainConfig, config_from, load_config
    from ase_biasgrad.training.evaluation.committee import make_committee
    from ase_biasgrad.training.evaluation.evaluate import Report, evaluate, table
    from ase_biasgrad.training.evaluation.predict import predict
    from ase_biasgrad.training.evaluation.report import write_report
    from ase_biasgrad.training.frames.device_frames import DeviceFrames
    from ase_biasgrad.training.run import TrainingResult, resume, train
    from ase_biasgrad.training.stages.bias import fit_bias
    from ase_biasgrad.training.stages.calculator_bias import CalculatorFit, fit_calculator_bias
    from ase_biasgrad.training.stages.levels import fit_bias_by_level

__all__ = [
    "CalculatorFit",
    "ConfigError",
    "DeviceFrames",
    "Jobs",
    "LearnFolder",
    "LearnOptions",
    "NBodyNetwork",
    "Report",
    "TrainConfig",
    "TrainingOptions",
    "TrainingResult",
    "config_from",
    "evaluate",
    "fit_bias",
    "fit_bias_by_level",
    "fit_calculator_bias",
    "fit_energies",
    "learn",
    "load_config",
    "load_network",
    "make_committee",
    "predict",
    "predict_dense",
    "resume",
    "rollout",
    "table",
    "train",
    "train_dense",
    "write_report",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CalculatorFit": "ase_biasgrad.training.stages.calculator_bias",
        "ConfigError": "ase_biasgrad.training.config",
        "DeviceFrames": "ase_biasgrad.training.frames.device_frames",
        "Jobs": "ase_biasgrad.training.active.jobs",
        "LearnFolder": "ase_biasgrad.training.active.folder",
        "LearnOptions": "ase_biasgrad.training.active.options",
        "NBodyNetwork": "ase_biasgrad.training.benchmarks.nbody.network",
        "Report": "ase_biasgrad.training.evaluation.evaluate",
        "TrainConfig": "ase_biasgrad.training.config",
        "TrainingOptions": "ase_biasgrad.training.benchmarks.loop",
        "TrainingResult": "ase_biasgrad.training.run",
        "config_from": "ase_biasgrad.training.config",
        "evaluate": "ase_biasgrad.training.evaluation.evaluate",
        "fit_bias": "ase_biasgrad.training.stages.bias",
        "fit_bias_by_level": "ase_biasgrad.training.stages.levels",
        "fit_calculator_bias": "ase_biasgrad.training.stages.calculator_bias",
        "fit_energies": "ase_biasgrad.training.benchmarks.qm7.energy_stage",
        "learn": "ase_biasgrad.training.active.learn",
        "load_config": "ase_biasgrad.training.config",
        "load_network": "ase_biasgrad.training.benchmarks.loop",
        "make_committee": "ase_biasgrad.training.evaluation.committee",
        "predict": "ase_biasgrad.training.evaluation.predict",
        "predict_dense": "ase_biasgrad.training.benchmarks.qm7.dense_stage",
        "resume": "ase_biasgrad.training.run",
        "rollout": "ase_biasgrad.training.benchmarks.nbody.network",
        "table": "ase_biasgrad.training.evaluation.evaluate",
        "train": "ase_biasgrad.training.run",
        "train_dense": "ase_biasgrad.training.benchmarks.qm7.dense_stage",
        "write_report": "ase_biasgrad.training.evaluation.report",
    },
)
