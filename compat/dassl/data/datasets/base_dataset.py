import random
from collections import defaultdict
from operator import attrgetter

from dassl.utils import check_isfile


class Datum:
    """One image file with its label.

    CoOp pickles lists of these (`split_fewshot/*.pkl`), so the module and the underscored names are
    those of the real Dassl.
    """

    def __init__(self, impath="", label=0, domain=0, classname=""):
        assert check_isfile(impath), f'There is no image file at "{impath}": check DATASET.ROOT'
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    impath = property(attrgetter("_impath"))
    label = property(attrgetter("_label"))
    domain = property(attrgetter("_domain"))
    classname = property(attrgetter("_classname"))


class DatasetBase:
    """Lists of Datum for training (labelled and unlabelled), validation and test.

    The classes are those of `train_x`.
    """

    dataset_dir = ""
    domains = []  # noqa: RUF012  a subclass has its own

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self.train_x, self.train_u, self.val, self.test = train_x, train_u, val, test
        self.num_classes = self.get_num_classes(train_x)
        self.lab2cname, self.classnames = self.get_lab2cname(train_x)

    @staticmethod
    def get_num_classes(data_source):
        """One more than the largest label."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source):
        """`{label: class name}`, and the names in the order of their labels."""
        mapping = {item.label: item.classname for item in data_source}
        return mapping, [mapping[label] for label in sorted(mapping)]

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        """Draw `num_shots` items of each label from each list, in the order of first appearance.

        A label with fewer items gives all it has, or with `repeat` is drawn from with replacement.
        Returns the list, or a list of lists where several came in. The draws come from Python's
        global generator: set_random_seed decides them.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources

        def draw(items):
            if len(items) >= num_shots:
                return random.sample(items, num_shots)
            return random.choices(items, k=num_shots) if repeat else items

        print(f"Creating a {num_shots}-shot dataset")
        output = []
        for data_source in data_sources:
            groups = self.split_dataset_by_label(data_source).values()
            output.append([item for group in groups for item in draw(group)])
        return output[0] if len(output) == 1 else output

    def split_dataset_by_label(self, data_source):
        """`{label: its items}`, both in the order of `data_source`."""
        output = defaultdict(list)
        for item in data_source:
            output[item.label].append(item)
        return output
