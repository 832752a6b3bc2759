"""The loop that every method shares: ask, query, tell; budget, evaluation, checkpoints."""

import time

import torch
from dassl.engine import TrainerX
from dassl.utils import AverageMeter, MetricMeter, set_random_seed
from torch import nn
from tqdm import tqdm

from .run.checkpoints import BEST, RESUME, Checkpointed
from .data.loaders import Pictured, build_data, match_input, ordered_loader
from .run.errors import BlackBoxError, BudgetSpent
from .losses import cross_entropies
from .oracle import Meter, build_oracle
from .oracle.meter import UNITS, query_cost
from .run.rng import child_seed, rng_state, seeded_generator, set_rng_state


class PromptLearner(nn.Module):
    """A prompt space, the vector in use and perhaps a head: all that evaluation needs. `forward()` gives the prompt, P = 1."""

    def __init__(self, space, theta, head=None):
        super().__init__()
        self.space, self.head = space, head
        self.register_buffer("theta", theta.clone())

    def forward(self):
        return self.space(self.theta[None])


class BlackBoxTrainer(Checkpointed, Pictured, TrainerX):
    """A recipe fills in `needs` and `build_recipe`; the rest is the same for every method.

    An epoch is one pass over Dassl's train loader, or, with `whole_set`, one step on the whole un-augmented training set. Training ends
    with the budget (`ORACLE.MAX_QUERIES`, `ORACLE.MAX_IMAGE_QUERIES`) or with `OPTIM.MAX_EPOCH`, whichever comes first.
    """

    needs = ("logits",)  # grants that the method cannot do without
    whole_set = False  # whether `tell` waits for the whole training set
    model_name = "prompt_learner"
    head = head_optim = sched = None

    def build_recipe(self, generator):
        """Returns (prompt space, optimiser); the optimiser's `solution` is the vector to start from."""
        raise NotImplementedError

    def build_head(self):
        """Returns (head, its optimiser), for methods that train one."""
        return None, None

    def build_sched(self):
        """Returns the schedule of the optimiser's learning rate, one step an epoch, for methods that have one."""
        return None

    # ------------------------------------------------------------------ building

    def build_data_loader(self):
        cfg = self.cfg
        oracle = build_oracle(cfg, self.device, client=cfg.TRAINER.NAME)
        oracle.require(*self.needs)
        self.oracle = Meter(
            oracle,
            cfg.ORACLE.MAX_QUERIES,
            cfg.ORACLE.MAX_IMAGE_QUERIES,
            record=f"{cfg.OUTPUT_DIR}/queries.json",
        )
        self.cfg = match_input(cfg, oracle.description)
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)  # whatever the model's construction drew
        build_data(self)
        self.name_classes()

    def name_classes(self):
        self.oracle.set_classes(self.dm.dataset.classnames)

    def build_model(self):
        generator = seeded_generator(self.cfg.SEED)
        space, self.optim = self.build_recipe(generator)
        self.space = space.to(self.device)
        with torch.random.fork_rng(
            devices=[]
        ):  # a head's first weights come from the run's seed, and leave the loaders' draws alone
            torch.manual_seed(child_seed(generator))
            self.head, self.head_optim = self.build_head()
        self.learner = PromptLearner(self.space, self.optim.solution, self.head).to(self.device)
        self.sched = self.build_sched()
        self.register_model(self.model_name, self.learner, self.optim, self.sched)
        self.batches_done, self.epoch_rng = 0, None
        longest = self.learner()
        self.oracle.check(
            longest.contexts.shape[1]
        )  # a context that does not fit is an error now, not after the first epoch
        print(
            f"{self.cfg.TRAINER.NAME}: {len(self.learner.theta):,} tuned numbers, context {tuple(longest.contexts.shape[1:])}"
        )

    def step_cost(self):
        """(queries, image queries) of one step."""
        return query_cost(self.optim.population, self.step_images())

    def step_images(self):
        images = len(self.dm.dataset.train_x)
        return images if self.whole_set else min(self.train_loader_x.batch_size, images)

    def feature_cost(self):
        """`step_cost` of a step for which the texts' features of every candidate come back, and the images' once."""
        queries, images = query_cost(1, self.step_images())
        return self.optim.population + queries, images

    def steps_in_budget(self):
        """Steps that the whole budget pays for, or that the epochs hold, whichever are fewer."""
        steps = [self.max_epoch * (1 if self.whole_set else len(self.train_loader_x))]
        steps += [
            limit // cost
            for limit, cost in zip(self.oracle.limits.values(), self.step_cost())
            if limit
        ]
        return min(steps)

    def describe_cost(self):
        """What the whole run would ask of the model, as a line; `--no-train` prints it."""
        steps, (queries, images) = self.steps_in_budget(), self.step_cost()
        return f"{steps:,} steps of {queries:,} queries: {steps * queries:,} training queries, {steps * images:,} image queries"

    # ------------------------------------------------------------------ training

    def train(self):
        try:
            super().train()
        except BudgetSpent as spent:
            self.bar.close()
            print(
                f"{spent}. Training ends after {self.batches_done} batches of epoch {self.epoch + 1}."
            )
            self.select_best()
            self.save_model(self.max_epoch - 1, self.output_dir)
            self.after_train()
        finally:
            if hasattr(self, "bar"):
                self.bar.close()  # an error's sentence begins on a line of its own

    def check_training(self):
        """Raise unless the budget pays for one step and no image is trained on that is tested on."""
        super().check_training()
        for unit, cost, limit in zip(UNITS, self.step_cost(), self.oracle.limits.values()):
            if limit and cost > limit:
                raise BlackBoxError(
                    f"One step of {self.cfg.TRAINER.NAME} costs {cost:,} {unit.replace('_', ' ')}, but the budget "
                    f"(ORACLE.MAX_{unit.upper()}) is {limit:,}. Raise it, or set it to 0 for no limit."
                )

    def before_train(self):
        super().before_train()
        print(f"The whole run: {self.describe_cost()}")
        self.batches = [self.upload_set()] if self.whole_set else self.train_loader_x
        self.saved_at = self.spent()
        self.bar = tqdm(
            total=self.steps_in_budget() * self.step_cost()[0],
            initial=self.spent(),
            unit="query",
            desc=self.cfg.TRAINER.NAME,
        )
        self.time_meter, self.losses = AverageMeter(), MetricMeter()

    def spent(self):
        return self.oracle.counts["training"]["queries"]

    def upload_set(self):
        """The training images, in order and un-augmented, and their labels `[N]`. An upload is no query."""
        loader = ordered_loader(self.cfg, self.dm.dataset.train_x, self.pictures)
        labels = torch.tensor([item.label for item in self.dm.dataset.train_x], device=self.device)
        pixels = torch.empty(
            len(labels), 3, *self.oracle.description.image_size
        )  # one by one into their place: there may be gigabytes
        for batch in loader:
            pixels[batch["index"]] = batch["img"]
        return self.oracle.upload(pixels), labels

    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches = len(self.batches)
        skip, self.batches_done = self.batches_done, 0
        # A resumed epoch is replayed from its start: the loader draws as it drew before, and finished batches are passed over.
        if self.epoch_rng is not None:
            set_rng_state(self.epoch_rng)
        self.epoch_rng = rng_state()
        end = time.time()
        for self.batch_idx, batch in enumerate(self.batches):
            if self.batch_idx >= skip:
                self.oracle.afford(*self.step_cost())  # a step is made whole or not at all
                summary = self.forward_backward(batch)
                self.time_meter.update(time.time() - end)
                self.report(summary)
                self.watch_val()
            self.batches_done = self.batch_idx + 1
            if skip < self.batches_done < self.num_batches:
                self.save_if_due()
            end = time.time()
        self.update_lr()
        self.batches_done, self.epoch_rng = 0, None

    def save_if_due(self):
        if (
            self.cfg.ORACLE.SAVE_EVERY
            and self.spent() - self.saved_at >= self.cfg.ORACLE.SAVE_EVERY
        ):
            self.write_checkpoint(RESUME)

    def watch_val(self):
        """With `ORACLE.VAL_EVERY`, a line of `val_curve.csv` whenever so many queries more are spent. It decides nothing."""
        every, counts = self.cfg.ORACLE.VAL_EVERY, self.oracle.counts["training"]
        if (
            every
            and counts["queries"] // every > (counts["queries"] - self.step_cost()[0]) // every
        ):
            accuracy = self.test(split="val")
            self.set_model_mode("train")
            with open(f"{self.output_dir}/val_curve.csv", "a", encoding="utf-8") as f:
                f.write(f"{counts['queries']},{counts['image_queries']},{accuracy}\n")

    def examples(self, batch):
        """(`Images`, labels `[B]`) of what an epoch iterates over."""
        if self.whole_set:
            return batch
        images, labels = self.parse_batch_train(batch)
        return self.oracle.upload(images), labels

    def forward_backward(self, batch):
        """One step, which draws nothing from the global random sources (a resumed epoch replays its loader alone), save with `whole_set`.

        Returns the means over the last round's candidates of loss and accuracy.
        """
        images, labels = self.examples(batch)
        for _ in range(self.optim.rounds):
            candidates = self.optim.ask()
            summary = self.tell(self.answer(images, self.space(candidates)), labels)
        return summary

    def answer(self, images, prompt):
        """The candidates' logits `[P, B, C]`."""
        return self.oracle.query(images, *prompt)

    def tell(self, logits, labels):
        """Tell the optimiser the candidates' logits `[P, B, C]`, or what they are worth, and put its solution to use; returns the step's summary."""
        losses = self.fitness(logits, labels)
        self.inform(logits, losses, labels)
        self.learner.theta.copy_(self.optim.solution)
        return {
            "loss": losses.mean().item(),
            "acc": 100 * (logits.argmax(-1) == labels).float().mean().item(),
        }

    def inform(self, logits, losses, labels):
        """What the optimiser wants to be told."""
        self.optim.tell(*((logits, labels) if self.optim.told == "logits" else (losses,)))

    def fitness(self, logits, labels):
        """Mean cross-entropy of every candidate: logits `[P, B, C]`, labels `[B]` -> `[P]`."""
        return cross_entropies(logits, labels).mean(1)

    def report(self, summary):
        self.losses.update(summary)
        self.bar.update(self.spent() - self.bar.n)
        step = self.epoch * self.num_batches + self.batch_idx
        if (step + 1) % self.cfg.TRAIN.PRINT_FREQ == 0:
            print(
                f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
                f"queries {self.spent():,} time {self.time_meter.val:.3f} ({self.time_meter.avg:.3f}) {self.losses} lr {self.get_current_lr():.4e}"
            )
        for name, meter in self.losses.meters.items():
            self.write_scalar("train/" + name, meter.avg, self.spent())

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def select_best(self):
        """With `TEST.FINAL_MODEL best_val`, keep the model if it is the best so far on `val`. The test split is never looked at."""
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.write_checkpoint(BEST, is_newest=False, val_result=result)

    def after_epoch(self):
        self.select_best()
        every, done = self.cfg.TRAIN.CHECKPOINT_FREQ, self.epoch + 1
        if done == self.max_epoch or (every > 0 and done % every == 0):
            self.save_model(self.epoch, self.output_dir)
        else:
            self.save_if_due()

    def after_train(self):
        self.bar.close()
        left = self.oracle.left()
        if left is not None and left >= self.step_cost()[0]:
            print(
                f"OPTIM.MAX_EPOCH {self.max_epoch} ended training with {left:,} of {self.oracle.limits['queries']:,} queries left; raise it to spend them."
            )
        super().after_train()
        print(self.oracle.summary())

    # ------------------------------------------------------------------ evaluation

    def test(self, split=None):
        """Dassl's evaluation, on the other account, and without a trace in the random sources that training draws from."""
        random_sources = rng_state()
        try:
            with self.oracle.evaluation():
                return super().test(split)
        finally:
            set_rng_state(random_sources)

    def model_inference(self, images):
        logits = self.oracle.query(self.oracle.upload(images), *self.learner())[0]
        return logits if self.head is None else self.head(logits)
