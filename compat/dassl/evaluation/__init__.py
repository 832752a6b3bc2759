import os
from collections import OrderedDict

import numpy as np
import torch
from dassl.utils import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs):
    return EVALUATOR_REGISTRY.build(cfg.TEST.EVALUATOR, "evaluator", cfg, **kwargs)


class EvaluatorBase:
    """`reset`, then `process` batch by batch, then `evaluate`.

    The first value of what that returns is what `trainer.test()` returns.
    """

    def __init__(self, cfg):
        self.cfg = cfg


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error and macro F1 in percent.

    On request the accuracy of each class and the confusion matrix.
    """

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        self._lab2cname = lab2cname
        self.reset()

    def reset(self):
        self._y_true, self._y_pred = [], []

    def process(self, mo, gt):
        """Take the model's output `[B, C]` and the labels `[B]`."""
        self._y_pred.extend(mo.max(1)[1].tolist())
        self._y_true.extend(gt.tolist())

    def evaluate(self):
        # here, since it takes a quarter of the time that importing the package takes
        from sklearn.metrics import confusion_matrix, f1_score

        y_true, y_pred = np.array(self._y_true), np.array(self._y_pred)
        total, correct = len(y_true), int((y_true == y_pred).sum())
        accuracy = 100.0 * correct / total
        macro_f1 = 100.0 * f1_score(y_true, y_pred, average="macro", labels=np.unique(y_true))
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=macro_f1)
        print(
            "=> result\n"
            f"* total: {total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {100.0 - accuracy:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._per_class(y_true, y_pred)
        if self.cfg.TEST.COMPUTE_CMAT:
            path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
            torch.save(confusion_matrix(y_true, y_pred, normalize="true"), path)
            print(f"Confusion matrix is saved to {path}")
        return results

    def _per_class(self, y_true, y_pred):
        """Print each class's accuracy; returns their mean."""
        print("=> per-class result")
        accuracies = []
        for label in np.unique(y_true):
            hits = y_pred[y_true == label] == label
            accuracies.append(100.0 * hits.mean())
            print(
                f"* class: {label} ({self._lab2cname[label]})\ttotal: {len(hits):,}\t"
                f"correct: {hits.sum():,}\tacc: {accuracies[-1]:.1f}%"
            )
        print(f"* average: {np.mean(accuracies):.1f}%")
        return np.mean(accuracies)
