"""What the methods are made of; a method's file takes it by `from . import blackbox as bb`.

Here are the names that most methods need. Others stand in their module: losses, optimisers, prompt
spaces, `selection` (of what is fitted to features), the oracle, and so on.
"""

from . import bank, config, data, losses, optimizers, oracle, prompts, record, trainer
from .config import SIZE, Key, Validator, flag, number, one, register_trainer, text, where, whole
from .errors import BlackBoxError
from .heads import scores, selection
from .heads.selection import FeatureHead, Gathered
from .oracle import Description, Prompt
from .probe import ProbeTrainer, descend, probe_keys
from .rng import child_seed, seeded
from .search import Answer, Recipe, SearchTrainer, Teacher
