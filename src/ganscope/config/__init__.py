"""The settings of every command: one frozen dataclass each, documented and validated in a module of
its own.

A command line option, a field there and a keyword of the Python function are the same thing under
the same name; `tests/test_cli.py` compares them. Nothing here imports torch.
"""

from ganscope.config.arms_race import ArmsRaceSettings
from ganscope.config.audit import AuditSettings
from ganscope.config.benchmark import BenchmarkSettings
from ganscope.config.check import HEATMAP_METHODS, RUNTIMES, CheckSettings
from ganscope.config.diversity import DiversitySettings
from ganscope.config.export import EXPORTS, ExportSettings
from ganscope.config.generate import FORMATS, GenerateSettings
from ganscope.config.inspect import InspectSettings, TrustUpdateSettings
from ganscope.config.latent import (
    LatentApplySettings,
    LatentArithmeticSettings,
    LatentDirectionSettings,
    LatentSettings,
    LatentWalkSettings,
)
from ganscope.config.records import as_command, changed, plain
from ganscope.config.scan import ScanSettings
from ganscope.config.serve import PlaySettings, ProjectSettings, ServeSettings
from ganscope.config.spectra import SpectraSettings
from ganscope.config.train_detector import RECIPES, TrainDetectorSettings
from ganscope.config.train_generator import TrainGeneratorSettings
from ganscope.config.validation import DEVICES, LOSSES, PRECISIONS
from ganscope.files import next_free, read_json, replacing, write_json, write_text

__all__ = [
    "DEVICES",
    "EXPORTS",
    "FORMATS",
    "HEATMAP_METHODS",
    "LOSSES",
    "PRECISIONS",
    "RECIPES",
    "RUNTIMES",
    "ArmsRaceSettings",
    "AuditSettings",
    "BenchmarkSettings",
    "CheckSettings",
    "DiversitySettings",
    "ExportSettings",
    "GenerateSettings",
    "InspectSettings",
    "LatentApplySettings",
    "LatentArithmeticSettings",
    "LatentDirectionSettings",
    "LatentSettings",
    "LatentWalkSettings",
    "PlaySettings",
    "ProjectSettings",
    "ScanSettings",
    "ServeSettings",
    "SpectraSettings",
    "TrainDetectorSettings",
    "TrainGeneratorSettings",
    "TrustUpdateSettings",
    "as_command",
    "changed",
    "next_free",
    "plain",
    "read_json",
    "replacing",
    "write_json",
    "write_text",
]
