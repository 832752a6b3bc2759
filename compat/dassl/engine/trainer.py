import datetime
import os
import time
from collections import OrderedDict

import numpy as np
import torch
from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    load_checkpoint,
    mkdir_if_missing,
    resume_from_checkpoint,
    save_checkpoint,
    tolist_if_not,
)
from tqdm import tqdm

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg):
    """The trainer that `cfg.TRAINER.NAME` names, with its data and model built."""
    return TRAINER_REGISTRY.build(cfg.TRAINER.NAME, "trainer", cfg)


class TrainerBase:
    """Named models with optimizers and schedules, the loop over epochs and its hooks."""

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
        self._writer = None

    def register_model(self, name="model", model=None, optim=None, sched=None):
        assert name not in self._models, f'A model named "{name}" is already registered'
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names=None):
        """All names, or `names` (one or a list) as a list after a check."""
        names = list(self._models) if names is None else tolist_if_not(names)
        unknown = [name for name in names if name not in self._models]
        assert not unknown, f"There is no model {unknown}, only {list(self._models)}"
        return names

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Save every model into its own folder; `epoch` counts from 0, the file's from 1."""
        for name, model in self._models.items():
            state = {"state_dict": model.state_dict(), "epoch": epoch + 1, "val_result": val_result}
            parts = {"optimizer": self._optims[name], "scheduler": self._scheds[name]}
            for kind, part in parts.items():
                state[kind] = None if part is None else part.state_dict()
            folder = os.path.join(directory, name)
            save_checkpoint(state, folder, is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory):
        """Load every model's newest checkpoint, if all are there; return the epoch to start at."""
        folders = {name: os.path.join(directory, name) for name in self._models}
        if not all(os.path.exists(folder) for folder in folders.values()):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        for name, folder in folders.items():
            start_epoch = resume_from_checkpoint(
                folder, self._models[name], self._optims[name], self._scheds[name]
            )
        return start_epoch

    def load_model(self, directory, epoch=None):
        """Load the weights of the best model, or of the one saved after `epoch`."""
        if not directory:
            print(
                "Note that load_model() is skipped as no pretrained model is given (ignore this if "
                "it's done on purpose)"
            )
            return
        model_file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
        for name, model in self._models.items():
            model_path = os.path.join(directory, name, model_file)
            checkpoint = load_checkpoint(model_path)
            result = checkpoint["val_result"]  # None in the checkpoints of an epoch
            words = result if result is None else f"{result:.1f}"
            print(f"Load {model_path} to {name} (epoch={checkpoint['epoch']}, val_result={words})")
            model.load_state_dict(checkpoint["state_dict"])

    def set_model_mode(self, mode="train", names=None):
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"The mode must be train, test or eval, but got {mode}")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names=None):
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss):
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def init_writer(self, log_dir):
        if self._writer is None:
            # slow to import, and only training writes
            from torch.utils.tensorboard import SummaryWriter

            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self):
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag, scalar_value, global_step=None):
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    def train(self, start_epoch, max_epoch):
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()  # may move start_epoch, by resuming
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020  an attribute
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def _nothing(self):
        pass

    before_train = after_train = before_epoch = after_epoch = _nothing

    def _unwritten(self, *args):
        raise NotImplementedError(
            f"{type(self).__name__} leaves out a method of its training. Write it; the default "
            f"build_model() builds a network of dassl.modeling, which needs the real Dassl"
        )

    build_model = run_epoch = test = forward_backward = parse_batch_train = _unwritten
    parse_batch_test = model_inference = _unwritten

    def model_zero_grad(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss):
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss, names=None):
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)


class SimpleTrainer(TrainerBase):
    """Data, checkpoints, evaluation and log; a subclass builds the model and runs an epoch."""

    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -np.inf

    def check_cfg(self, cfg):
        """Raise where the config does not suit this trainer."""

    def build_data_loader(self):
        self.dm = dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname

    def train(self):
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self):
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.cfg.OUTPUT_DIR)
        writer_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time()

    def after_train(self):
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def after_epoch(self):
        done, cfg = self.epoch + 1, self.cfg
        if cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, False, result, "model-best.pth.tar")
        frequency = cfg.TRAIN.CHECKPOINT_FREQ
        if done == self.max_epoch or (frequency > 0 and done % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    @torch.no_grad()
    def test(self, split=None):
        """Evaluate on `split`, by default TEST.SPLIT; without a validation set, on the test set.

        Returns the accuracy.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        if split != "val" or self.val_loader is None:
            split = "test"
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(self.val_loader if split == "val" else self.test_loader):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def get_current_lr(self, names=None):
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]


class TrainerX(SimpleTrainer):
    """Trains on labelled images: `forward_backward(batch)` returns the numbers to log."""

    def run_epoch(self):
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        end = time.time()
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020  an attribute
            data_time.update(time.time() - end)
            loss_summary = self.forward_backward(batch)
            batch_time.update(time.time() - end)
            losses.update(loss_summary)
            self._log_batch(losses, batch_time, data_time)
            end = time.time()

    def _log_batch(self, losses, batch_time, data_time):
        done, frequency = self.batch_idx + 1, self.cfg.TRAIN.PRINT_FREQ
        if done % frequency == 0 or self.num_batches < frequency:
            remaining = (self.max_epoch - self.epoch) * self.num_batches - done
            print(
                f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{done}/{self.num_batches}] "
                f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
                f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
                f"{losses} lr {self.get_current_lr():.4e} "
                f"eta {datetime.timedelta(seconds=int(batch_time.avg * remaining))}"
            )
        step = self.epoch * self.num_batches + self.batch_idx
        for name, meter in losses.meters.items():
            self.write_scalar(f"train/{name}", meter.avg, step)
        self.write_scalar("train/lr", self.get_current_lr(), step)

    def parse_batch_train(self, batch):
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))
