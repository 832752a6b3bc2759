"""ZIP: zeroth-order intrinsic-dimensional prompt tuning (ICLR 2025)."""

from .blackbox.engine import BlackBoxTrainer
from .blackbox.optimizers import SPSA
from .blackbox.prompts import build_space, initial_context
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed


@register_trainer
class ZIP(BlackBoxTrainer):
    """Low rank + Fastfood prompt space; SPSA with intrinsic-dimensional clipping; told the loss of every mini-batch.

    Access: logits. A step costs `2 SP_AVG` queries (10), all on the same mini-batch.
    """

    def build_recipe(self, generator):
        zip = self.cfg.TRAINER.ZIP
        start = initial_context(self.oracle, zip.CTX_INIT, zip.N_CTX, generator)
        space = build_space(zip.SPACE, start, self.cfg, generator)
        optimizer = SPSA(
            space.origin.to(self.device),
            rule=zip.RULE,
            average=zip.SP_AVG,
            o=zip.O,
            c=zip.C,
            a=zip.A,
            alpha=zip.ALPHA,
            gamma=zip.GAMMA,
            beta=zip.BETA,
            seed=child_seed(generator),
        )
        return space, optimizer
