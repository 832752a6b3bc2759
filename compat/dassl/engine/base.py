import os
from collections import OrderedDict

import torch
from dassl.utils import load_checkpoint, resume_from_checkpoint, save_checkpoint, tolist_if_not


class TrainerBase:
    """Named models with optimizers and schedules, the loop over epochs and its hooks."""

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
        self._writer = None

    def register_model(self, name="model", model=None, optim=None, sched=None):
        if "_models" not in self.__dict__:
            raise AttributeError("register_model() must come after super().__init__()")
        assert name not in self._models, f'A model named "{name}" is already registered'
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names=None):
        """All names, or `names` (one or a list) as a list after a check."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            assert name in self._models, (
                f'No model is registered as "{name}", only {list(self._models)}'
            )
        return names

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Save every model into its own folder; `epoch` counts from 0, the file's from 1."""

        def state_of(part):
            return None if part is None else part.state_dict()

        for name in self.get_model_names():
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": state_of(self._optims[name]),
                "scheduler": state_of(self._scheds[name]),
                "val_result": val_result,
            }
            save_checkpoint(
                state, os.path.join(directory, name), is_best=is_best, model_name=model_name
            )

    def resume_model_if_exist(self, directory):
        """Load every model's newest checkpoint, if all are there; return the epoch to start at."""
        folders = {name: os.path.join(directory, name) for name in self.get_model_names()}
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
        for name in self.get_model_names():
            model_path = os.path.join(directory, name, model_file)
            if not os.path.exists(model_path):
                raise FileNotFoundError(f"No model at {model_path}")
            checkpoint = load_checkpoint(model_path)
            result = checkpoint["val_result"]  # None in the checkpoints of an epoch
            words = result if result is None else f"{result:.1f}"
            print(f"Load {model_path} to {name} (epoch={checkpoint['epoch']}, val_result={words})")
            self._models[name].load_state_dict(checkpoint["state_dict"])

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
            f"{type(self).__name__} leaves out a method which the training loop needs"
        )

    run_epoch = test = forward_backward = parse_batch_train = parse_batch_test = model_inference = (
        _unwritten
    )

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
