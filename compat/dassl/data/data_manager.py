from operator import attrgetter

import torch
import torchvision.transforms as T
from dassl.utils import read_image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset

from .datasets import build_dataset
from .samplers import build_sampler
from .transforms import INTERPOLATION_MODES, build_transform


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
    sampler = build_sampler(
        sampler_type,
        cfg=cfg,
        data_source=data_source,
        batch_size=batch_size,
        n_domain=n_domain,
        n_ins=n_ins,
    )
    loader = DataLoader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )
    assert len(loader) > 0, "The data loader has no batch: is the data set empty?"
    return loader


class DataManager:
    """The data set of a config, and the loaders over its parts.

    `train_loader_u` and `val_loader` may be None.
    """

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        self.dataset = build_dataset(cfg)
        tfm_train = _transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = _transform(cfg, custom_tfm_test, is_train=False)

        def train_loader(items, node):
            return build_data_loader(
                cfg,
                node.SAMPLER,
                items,
                node.BATCH_SIZE,
                node.N_DOMAIN,
                node.N_INS,
                tfm_train,
                True,
                dataset_wrapper,
            )

        def test_loader(items):
            node = cfg.DATALOADER.TEST
            return build_data_loader(
                cfg,
                node.SAMPLER,
                items,
                node.BATCH_SIZE,
                tfm=tfm_test,
                is_train=False,
                dataset_wrapper=dataset_wrapper,
            )

        dataset, nodes = self.dataset, cfg.DATALOADER
        node_u = nodes.TRAIN_X if nodes.TRAIN_U.SAME_AS_X else nodes.TRAIN_U
        self.train_loader_x = train_loader(dataset.train_x, nodes.TRAIN_X)
        self.train_loader_u = train_loader(dataset.train_u, node_u) if dataset.train_u else None
        self.val_loader = test_loader(dataset.val) if dataset.val else None
        self.test_loader = test_loader(dataset.test)
        self._num_classes = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    num_classes = property(attrgetter("_num_classes"))
    num_source_domains = property(attrgetter("_num_source_domains"))
    lab2cname = property(attrgetter("_lab2cname"))

    def show_dataset_summary(self, cfg):
        rows = [
            ("Dataset", cfg.DATASET.NAME),
            ("Source", cfg.DATASET.SOURCE_DOMAINS),
            ("Target", cfg.DATASET.TARGET_DOMAINS),
            ("# classes", f"{self.num_classes:,}"),
        ]
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

    `transform` may be a list: the second one's result is `img2`, and so on. In training,
    K_TRANSFORMS > 1 makes each a list of that many views. With RETURN_IMG0, `img0` is the image
    without augmentation.
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"Cannot make {self.k_tfm} views of an image: there is no transform")
        steps = [
            T.Resize(cfg.INPUT.SIZE, interpolation=INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]),
            T.ToTensor(),
        ]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            steps.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(steps)

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        image = read_image(item.impath)
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        if self.transform is None:
            output["img"] = image
        else:
            several = isinstance(self.transform, (list, tuple))
            for n, transform in enumerate(self.transform if several else [self.transform], start=1):
                output["img" if n == 1 else f"img{n}"] = self._views(transform, image)
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _views(self, transform, image):
        views = [transform(image) for _ in range(self.k_tfm)]
        return views if self.k_tfm > 1 else views[0]
