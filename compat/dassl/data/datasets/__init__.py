from dassl.utils import Registry

from .base_dataset import DatasetBase, Datum

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg):
    return DATASET_REGISTRY.build(cfg.DATASET.NAME, "dataset", cfg)
