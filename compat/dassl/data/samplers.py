import random
from collections import defaultdict

import numpy as np
from torch.utils.data import RandomSampler, Sampler, SequentialSampler


class RandomClassSampler(Sampler):
    """Batches of `batch_size // n_ins` random classes with `n_ins` images each.

    An epoch ends when fewer classes than a batch needs have images left; a class with fewer than
    `n_ins` images repeats them.
    """

    def __init__(self, data_source, batch_size, n_ins):
        if batch_size < n_ins:
            raise ValueError(f"batch_size={batch_size} must be no less than n_ins={n_ins}")
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.indices = defaultdict(list)  # label -> positions in data_source
        for index, item in enumerate(data_source):
            self.indices[item.label].append(index)
        assert len(self.indices) >= self.ncls_per_batch, (
            f"A batch needs {self.ncls_per_batch} classes, but there are {len(self.indices)}"
        )
        self.length = sum(1 for _ in self)  # of one drawn epoch: another may differ

    def __iter__(self):
        groups = {label: self._groups(indices) for label, indices in self.indices.items()}
        labels = list(groups)
        epoch = []
        while len(labels) >= self.ncls_per_batch:
            for label in random.sample(labels, self.ncls_per_batch):
                epoch.extend(groups[label].pop(0))
                if not groups[label]:
                    labels.remove(label)
        return iter(epoch)

    def _groups(self, indices):
        """`indices`, shuffled and cut into lists of `n_ins`; a remainder is left out."""
        if len(indices) < self.n_ins:
            indices = np.random.choice(indices, size=self.n_ins, replace=True)
        indices = list(indices)
        random.shuffle(indices)
        whole = len(indices) - len(indices) % self.n_ins
        return [indices[i : i + self.n_ins] for i in range(0, whole, self.n_ins)]

    def __len__(self):
        return self.length


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16):
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins)
    if sampler_type in ("RandomDomainSampler", "SeqDomainSampler"):
        raise NotImplementedError(
            f"{sampler_type} samples by domain, and needs the real Dassl: install it"
        )
    raise ValueError(f"Unknown sampler type: {sampler_type}")
