import torch
from dassl.utils import read_image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset

from .datasets import build_dataset
from .samplers import build_sampler
from .transforms import build_transform


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
):
    """A loader over a list of Datum.

    In training the last, partial batch is dropped, unless it is the only one.
    """
    wrapper = dataset_wrapper or DatasetWrapper
    loader = DataLoader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )
    assert len(loader) > 0, "The data loader has no batch: is the data set empty?"
    return loader


class DataManager:
    """The data set of a config, and the loaders over its parts; `val_loader` may be None."""

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        self.dataset = dataset = build_dataset(cfg)
        tfm_train = _transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = _transform(cfg, custom_tfm_test, is_train=False)

        def loader(items, node, tfm, is_train):
            given = node.SAMPLER, items, node.BATCH_SIZE, 0, 0, tfm, is_train, dataset_wrapper
            return build_data_loader(cfg, *given)

        test = cfg.DATALOADER.TEST
        self.train_loader_x = loader(dataset.train_x, cfg.DATALOADER.TRAIN_X, tfm_train, True)
        self.train_loader_u = None  # semi-supervised trainers need the real Dassl
        self.val_loader = loader(dataset.val, test, tfm_test, False) if dataset.val else None
        self.test_loader = loader(dataset.test, test, tfm_test, False)
        self.num_classes, self.lab2cname = dataset.num_classes, dataset.lab2cname
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def show_dataset_summary(self, cfg):
        rows = [("Dataset", cfg.DATASET.NAME), ("# classes", f"{self.num_classes:,}")]
        for name in ("train_x", "train_u", "val", "test"):
            items = getattr(self.dataset, name)
            rows.append((f"# {name}", items and f"{len(items):,}"))
        print(tabulate([row for row in rows if row[1]]))


def _transform(cfg, custom, is_train):
    if custom is None:
        return build_transform(cfg, is_train=is_train)
    print(f"* Using custom transform for {'training' if is_train else 'testing'}")
    return custom


class DatasetWrapper(Dataset):
    """Items as dictionaries `label, domain, impath, index, img`.

    `transform` may be a list: the second one's result is `img2`, and so on.
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        if cfg.DATALOADER.K_TRANSFORMS > 1 or cfg.DATALOADER.RETURN_IMG0:
            raise NotImplementedError("K_TRANSFORMS and RETURN_IMG0 need the real Dassl")

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        image, transforms = read_image(item.impath), self.transform
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        if transforms is None:
            return {**output, "img": image}
        for n, transform in enumerate(transforms if isinstance(transforms, list) else [transforms]):
            output[f"img{n + 1}" if n else "img"] = transform(image)
        return output
