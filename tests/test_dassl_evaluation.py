"""What this project relies on in Dassl's evaluation: its figures, and how they are printed."""

import pytest
import torch
import torch.nn.functional as F
from contract import COMPAT
from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase, build_evaluator
from dassl.metrics import compute_accuracy


def test_evaluator(cfg, tmp_path, capsys):
    cfg.OUTPUT_DIR, cfg.TEST.PER_CLASS_RESULT, cfg.TEST.COMPUTE_CMAT = str(tmp_path), True, True
    evaluator = build_evaluator(cfg, lab2cname={0: "a", 1: "b", 2: "c"})
    assert (
        isinstance(evaluator, EvaluatorBase)
        and "Classification" in EVALUATOR_REGISTRY.registered_names()
    )
    true, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 3, 1, 2, 2])
    evaluator.process(F.one_hot(true, 4).float(), true)
    evaluator.reset()
    for part in (slice(0, 4), slice(4, 6)):
        evaluator.process(F.one_hot(predicted[part], 4).float(), true[part])
    results = evaluator.evaluate()
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    macro_f1 = (
        4 / 5 + 2 / 3 + 2 / 3
    ) / 3  # 2 TP / (2 TP + FP + FN) of classes 0, 1 and 2; no image is truly of class 3
    assert [x / 100 for x in results.values()] == pytest.approx(
        [4 / 6, 2 / 6, macro_f1, (2 / 3 + 1 / 2 + 1) / 3]
    )
    assert capsys.readouterr().out == (
        "Loading evaluator: Classification\n"
        "=> result\n* total: 6\n* correct: 4\n"
        "* accuracy: 66.7%\n* error: 33.3%\n* macro_f1: 71.1%\n"
        "=> per-class result\n"
        "* class: 0 (a)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n"
        "* class: 1 (b)\ttotal: 2\tcorrect: 1\tacc: 50.0%\n"
        "* class: 2 (c)\ttotal: 1\tcorrect: 1\tacc: 100.0%\n"
        "* average: 72.2%\n"
        f"Confusion matrix is saved to {tmp_path}/cmat.pt\n"
    )
    assert torch.load(tmp_path / "cmat.pt", weights_only=False)[0].tolist() == pytest.approx(
        [2 / 3, 0, 0, 1 / 3]
    )


def test_compute_accuracy():
    output, target = (
        torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4], [0.1, 0.2, 0.7]]),
        torch.tensor([1, 2, 0]),
    )
    (top1,), (same,) = compute_accuracy(output, target), compute_accuracy((output, None), target)
    assert top1.shape == (1,) and top1.item() == same.item() == pytest.approx(100 / 3)
    if COMPAT:  # the real one calls view() on what is not contiguous for k > 1, which torch refuses
        assert [x.item() for x in compute_accuracy(output, target, topk=(1, 2))] == pytest.approx(
            [100 / 3, 200 / 3]
        )
