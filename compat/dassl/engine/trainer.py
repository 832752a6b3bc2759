import datetime
import os
import time

import numpy as np
import torch
from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.utils import AverageMeter, MetricMeter, mkdir_if_missing
from tqdm import tqdm

from .base import TrainerBase


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

    def build_model(self):
        raise NotImplementedError(
            f"{type(self).__name__} has no build_model(), and the default one builds a network of "
            "dassl.modeling, which needs the real Dassl: write build_model(), or install it"
        )

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
                self.save_model(
                    self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar"
                )
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
                f"epoch [{self.epoch + 1}/{self.max_epoch}] "
                f"batch [{done}/{self.num_batches}] "
                f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
                f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
                f"{losses} "
                f"lr {self.get_current_lr():.4e} "
                f"eta {datetime.timedelta(seconds=int(batch_time.avg * remaining))}"
            )
        step = self.epoch * self.num_batches + self.batch_idx
        for name, meter in losses.meters.items():
            self.write_scalar(f"train/{name}", meter.avg, step)
        self.write_scalar("train/lr", self.get_current_lr(), step)

    def parse_batch_train(self, batch):
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))
