"""What the files of the contract with Dassl share: a toy data set, and a trainer of it."""

import dassl
import torch
import torch.nn.functional as F
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from PIL import Image
from torch.nn import Linear

COMPAT = getattr(dassl, "__compat__", False)
PARTS = "train_x", "val", "test"


@DATASET_REGISTRY.register(force=True)
class ContractToy(DatasetBase):
    """`<split>_<label>_<number>.png` under DATASET.ROOT; label 0 is dark, label 1 bright."""

    def __init__(self, cfg):
        names = {0: "dark", 1: "bright"}

        def items(part):
            path = f"{cfg.DATASET.ROOT}/{part}"
            return [Datum(f"{path}_{y}_{i}.png", y, 0, names[y]) for y in names for i in range(5)]

        super().__init__(**{part: items(part) for part in PARTS})


@TRAINER_REGISTRY.register(force=True)
class ContractTrainer(TrainerX):
    """A linear classifier of pixels, written as CoOp's trainers are."""

    def build_model(self):
        self.model = Linear(3 * 8 * 8, 2).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)

    def parse_batch_train(self, batch):
        image, label, _ = super().parse_batch_train(batch)
        return image, label

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model_inference(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def model_inference(self, image):
        return self.model(image.flatten(1))


def draw(folder):
    """The pictures of `ContractToy`; returns its DATASET.ROOT."""
    for part in PARTS:
        for i in range(5):
            for label, colour in enumerate([(10 + i, 20, 30), (250 - i, 240, 230)]):
                Image.new("RGB", (8, 8), colour).save(folder / f"{part}_{label}_{i}.png")
    return str(folder)


def toy_cfg(root, out):
    """Configuration of a small run of `ContractTrainer` on `ContractToy`."""
    cfg = get_cfg_default()
    dataset = "DATASET.NAME", "ContractToy", "DATASET.ROOT", root, "OUTPUT_DIR", str(out)
    trainer = "TRAINER.NAME", "ContractTrainer", "USE_CUDA", False
    pictures = "INPUT.SIZE", (8, 8), "INPUT.TRANSFORMS", ("normalize",)
    loaders = "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 2
    optim = "OPTIM.NAME", "sgd", "OPTIM.LR", 0.05, "OPTIM.LR_SCHEDULER", "cosine"
    options = *dataset, *trainer, *pictures, *loaders, *optim, "OPTIM.MAX_EPOCH", 2
    cfg.merge_from_list(list(options))
    return cfg


def saved(path):
    return torch.load(path, weights_only=True)
