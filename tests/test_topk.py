"""ORACLE.TOP_K: what a service lets out that returns its largest log-probabilities alone, and what
JOLT makes of it.
"""

import math

import pytest
import torch
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied, Prompt, TopK
from support import Random, build, trained


@pytest.mark.parametrize(
    "folds, epochs", [(1, 2), (4, 1)]
)  # in a second epoch, folds of a few images make more of the rounding than the bound
def test_all_log_probabilities_are_as_good_as_logits(folds, epochs, data_root, tmp_path):
    runs = [
        trained(
            "JOLT",
            data_root,
            tmp_path / str(k),
            "ORACLE.TOP_K",
            k,
            "OPTIM.MAX_EPOCH",
            epochs,
            "TRAINER.JOLT.HEAD_FOLDS",
            folds,
        )
        for k in (0, 10)
    ]
    moved = runs[0].learner.theta - runs[0].learner.space.origin
    assert (
        moved.norm() > 0
        and (runs[1].learner.theta - runs[0].learner.theta).norm() < 0.02 * moved.norm()
    )


def test_top_k_by_hand():
    inner = Random()
    inner.query = lambda *args: torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None, None]
    torch.testing.assert_close(
        TopK(inner, 2).query(None, Prompt()), torch.tensor([[[0.5, 0.3, 0.1, 0.1]]]).log()
    )
    torch.testing.assert_close(TopK(inner, 9).query(None, Prompt()), inner.query())


@pytest.mark.parametrize("margin", [5.0, 16.0, 20.0, 30.0, 200.0])
def test_what_a_sure_model_leaves_is_exact_and_finite(margin):
    inner = Random()
    inner.query = lambda *args: torch.tensor([[[margin, 0, 0, 0]]])
    answer = TopK(inner, 1).query(None, Prompt())[0, 0]
    assert answer[1].item() == pytest.approx(-min(margin, 36 + math.log(3)), abs=0.03)


def test_top_k_lets_no_features_out(data_root, tmp_path):
    with pytest.raises(AccessDenied, match="does not grant"):
        build(
            "JOLT",
            data_root,
            tmp_path,
            "ORACLE.TOP_K",
            "3",
            "ORACLE.GRANTS",
            "('contexts', 'logits', 'features')",
            "TRAINER.JOLT.FEATURES",
            "True",
        )


def test_slopes_of_all_but_one_class_are_as_good(data_root, tmp_path):
    """Nine of ten log-probabilities leave nothing to guess."""
    slopes = []
    for k in (0, 9):
        trainer = build(
            "JOLT", data_root, tmp_path, "ORACLE.TOP_K", k, "TRAINER.JOLT.HEAD", "False"
        )
        batch = next(iter(trainer.train_loader_x))
        images = trainer.oracle.upload(batch["img"])
        for _ in range(2):
            asked = trainer.oracle.query(images, trainer.space(trainer.optim.ask()))
            if trainer.optim.here is None:
                trainer.optim.tell(asked, batch["label"])
        found = trainer.optim.slopes(asked)[1]
        slopes.append(found - found.mean(-1, keepdim=True))
    assert (slopes[1] - slopes[0]).norm() < 0.05 * slopes[0].norm()


def test_less_than_no_class_is_refused(data_root, tmp_path):
    with pytest.raises(BlackBoxError, match="ORACLE.TOP_K is -1"):
        build("JOLT", data_root, tmp_path, "ORACLE.TOP_K", "-1")
