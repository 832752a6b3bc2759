"""dassl-blackbox: Dassl trainers that adapt a vision-language model which can only be queried.

Importing the package registers its trainers and data sets with Dassl; `extend_cfg(cfg)` adds their
defaults to a Dassl configuration.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

HOME = Path(__file__).resolve().parent
if not (HOME / "trainers").is_dir():
    # In a checkout the subpackages (trainers, datasets, configs) lie beside this folder, not in it.
    HOME = HOME.parent
    __path__.append(str(HOME))
if find_spec("dassl") is None:
    # No Dassl installed: our own implementation of the part of its interface that is used here.
    sys.path.append(str(HOME / "compat"))

# below, since they import dassl
from . import datasets, trainers  # type: ignore[attr-defined]  # noqa: E402
from .trainers.blackbox.config import extend_cfg  # noqa: E402


def __getattr__(name: str) -> Any:
    """`ScoreClassifier` and `listed`, which import scikit-learn, when they are first used."""
    if name in ("ScoreClassifier", "listed"):
        return getattr(import_module(".classifier", __name__), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
