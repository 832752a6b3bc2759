"""JOLT's head: who learns from what, how far it is trusted, and what the optimiser is told."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.heads.selection import folds_of, stacking_weight
from dassl_blackbox.trainers.blackbox.search import Answer
from dassl_blackbox.trainers.jolt import CrossFitted, HeadLearner
from support import bill, build, defaults, seeded, trained

ROWS, CLASSES = (
    torch.randn(40, 3, generator=seeded(9)),
    torch.randint(3, (40,), generator=seeded(10)),
)


def listed(labels, paths=None):
    return [
        SimpleNamespace(label=label, impath=path)
        for label, path in zip(labels, paths or range(len(labels)))
    ]


FOLDS = folds_of(listed(CLASSES.tolist()), 4)


def learner(folds=4, rows=ROWS[:0], labels=CLASSES, **settings):
    """Of a head that always begins with the same weights, and was shown some rows."""
    node = defaults().TRAINER.JOLT
    node.update(settings, HEAD_WIDTH=64)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        made = HeadLearner(CrossFitted(3, 64, folds), FOLDS % folds, node)
    show(made, rows, labels)
    return made


def show(made, rows, labels, first=0):
    index = torch.arange(first, first + len(rows))
    made.see(Answer(rows[None], labels[index], index), 0)


def test_the_head_begins_by_changing_nothing_and_does_not_see_what_all_classes_share():
    head = CrossFitted(3, 8, 4)
    for folds in (None, FOLDS):
        assert torch.equal(head(ROWS, folds), ROWS)
    for part in head.mlps:
        torch.nn.init.normal_(part[-1].weight, generator=seeded(8))
    for folds in (None, FOLDS):
        torch.testing.assert_close(head(ROWS + 7.0, folds), head(ROWS, folds) + 7.0)


@pytest.mark.parametrize("shots", [1, 3, 4, 16])
def test_folds_are_even_over_the_images_of_a_class_and_over_all(shots):
    labels = [c for c in range(10) for _ in range(shots)]
    folds = folds_of(listed(labels), 4)
    for part, most in ((folds, 2), *((one, 1) for one in folds.view(10, shots))):
        sizes = part.bincount(minlength=4)
        assert sizes.max() - sizes.min() <= most
    again = folds_of(
        listed(3 * labels, 3 * list(range(len(labels)))), 4
    )  # some sets list a picture several times
    assert torch.equal(again, folds.repeat(3))


def test_an_image_is_refined_by_the_mlp_that_learned_nothing_from_it():
    one = learner(rows=ROWS)  # of the other the images of fold 2 show something else
    other = learner(rows=ROWS, labels=torch.where(FOLDS == 2, (CLASSES + 1) % 3, CLASSES))
    for each in (one, other):
        each.learn()
        each.head.trust.fill_(0.5)
    a, b = one.head(ROWS, FOLDS), other.head(ROWS, FOLDS)
    assert torch.equal(a[FOLDS == 2], b[FOLDS == 2]) and all(
        (a[FOLDS == k] != b[FOLDS == k]).all() for k in (0, 1, 3)
    )
    torch.testing.assert_close(
        one.head(torch.stack([ROWS, ROWS + 1]), FOLDS)[1], a + 1
    )  # candidates
    centred = ROWS - ROWS.mean(-1, keepdim=True)
    torch.testing.assert_close(
        one.head(ROWS), ROWS + 0.5 * torch.stack([part(centred) for part in one.head.mlps]).mean(0)
    )  # a new image: all of them
    torch.testing.assert_close(a[FOLDS == 2], (ROWS + 0.5 * one.head.mlps[2](centred))[FOLDS == 2])


def test_trust_is_the_weight_of_least_cross_entropy_at_its_best_scale():
    truth = F.one_hot(CLASSES, 3)
    logits, residuals = ROWS + truth, torch.randn(40, 3, generator=seeded(12)) + 0.6 * truth
    loss = {
        w / 100: min(
            F.cross_entropy(a / 50 * (logits + w / 100 * residuals), CLASSES) for a in range(1, 150)
        )
        for w in range(0, 201, 2)
    }
    best = min(loss, key=loss.get)
    assert 0.1 < best < 1.9 and abs(stacking_weight(logits, residuals, CLASSES) - best) <= 0.02
    assert (
        stacking_weight(logits, -residuals, CLASSES) == 0
        and stacking_weight(-logits, residuals, CLASSES) == 2
    )
    assert stacking_weight(100 * logits, -100 * residuals, CLASSES) == 0 and stacking_weight(
        logits, 1000 * residuals, CLASSES
    ) == pytest.approx(best / 1000, abs=1e-4)  # sure, and wrong


def test_a_head_that_knows_its_images_by_heart_is_not_trusted():
    told = torch.randint(3, (40,), generator=seeded(13))  # half the labels are another's
    labels = torch.where(torch.arange(40) % 2 == 0, CLASSES, told)
    for folds, least, most in ((1, 1.0, 1.0), (4, 0.0, 0.1)):
        rows, slow = ROWS + 2 * F.one_hot(CLASSES, 3), {"HEAD_STEPS": 300, "HEAD_LR": 0.01}
        one = learner(folds, rows, labels, **slow, HEAD_DROPOUT=0.0)
        assert one.learn()["head"] < 0.4 and least <= one.head.trust <= most


def test_the_head_remembers_the_latest():
    kept = learner(folds=1, HEAD_MEMORY=5, HEAD_DROPOUT=0.0)
    for begin, end, first in ((0, 3, 0), (3, 7, 2)):
        show(kept, ROWS[begin:end], CLASSES, begin)
        assert kept.loss() == F.cross_entropy(ROWS[first:end], CLASSES[first:end])


def test_an_mlp_that_may_learn_from_nothing_stays_finite():
    odd = learner(rows=ROWS[:4])
    odd.state["memory"][2].fill_(3)  # the fourth may learn from none
    assert odd.learn()["head"] > 0 and all(
        parameter.isfinite().all() for parameter in odd.head.parameters()
    )


def test_the_head_learns_what_its_state_decides():
    one, other = learner(rows=ROWS[:20]), learner(rows=ROWS[:3])
    first = one.learn()["head"]
    other.head.load_state_dict(one.head.state_dict())
    other.load_state_dict(deepcopy(one.state_dict()))
    assert one.head.trust == other.head.trust != 1
    state = torch.get_rng_state()
    losses = [[each.learn()["head"] for _ in range(3)] for each in (one, other)]
    assert losses[0] == losses[1] and losses[0][-1] < first
    assert len({one.loss().item() for _ in range(3)}) == 3  # another dropout each time
    assert torch.equal(torch.get_rng_state(), state)


def test_the_head_costs_no_query_and_learns_the_raw_answers_about_the_winner(data_root, tmp_path):
    both, alone = (
        build(
            "JOLT",
            data_root,
            tmp_path / head,
            "TRAINER.JOLT.HEAD",
            head,
            "ORACLE.MAX_QUERIES",
            12 * 6,
        )
        for head in ("True", "False")
    )
    assert both.plan == alone.plan and tuple(both.plan.step(0)) == (12, 96)
    query, raw = both.oracle.query, []
    both.oracle.query = lambda *args: raw.append(query(*args)) or raw[-1]
    batch, see, winners = next(iter(both.train_loader_x)), both.teacher.see, []
    both.teacher.see = lambda answer, number: winners.append(number) or see(answer, number)
    for _ in range(6):
        both.forward_backward(batch)
        logits, labels, folds = both.teacher.state["memory"]
        assert torch.equal(logits[-8:], raw[-2][winners[-1]]) and torch.equal(
            folds[-8:], both.teacher.folds[batch["index"]]
        )
    assert any(winners) and len(labels) == 20
    alone.train()
    assert (
        bill(tmp_path / "True")["training"]
        == bill(tmp_path / "False")["training"]
        == {"queries": 72, "image_queries": 576}
    )


def test_the_optimiser_is_told_logits_refined_by_what_did_not_see_the_image(data_root, tmp_path):
    trainer, told = build("JOLT", data_root, tmp_path), []
    for part in trainer.head.mlps:
        torch.nn.init.normal_(part[-1].weight)
    batch = next(iter(trainer.train_loader_x))
    query, tell, raw = trainer.oracle.query, trainer.optim.tell, []
    trainer.oracle.query = lambda *args: raw.append(query(*args)) or raw[-1]
    trainer.optim.tell = lambda logits, labels: told.append(logits) or tell(logits, labels)
    trainer.head.trust.fill_(0.5)
    parts, folds = deepcopy(trainer.head.mlps), trainer.teacher.folds[batch["index"]]
    trainer.forward_backward(batch)
    assert len(raw) == 2 and len(folds.unique()) > 1
    for answer, refined in zip(raw, told):
        for image, fold in enumerate(folds):
            one = answer[:, image]
            torch.testing.assert_close(
                refined[:, image], one + 0.5 * parts[fold](one - one.mean(-1, keepdim=True))
            )


@pytest.mark.parametrize("name", ["JOLT", "CraFT"])
def test_a_head_does_not_move_to_as_many_other_classes(name, data_root, tmp_path):
    subsample = "DATASET.SUBSAMPLE_CLASSES"
    build(name, data_root, tmp_path / "base", subsample, "base", "OPTIM.MAX_EPOCH", 1).train()
    with pytest.raises(
        BlackBoxError,
        match=(
            "head for the classes zero, one, two, .* .5.; here they are five, six, seven, .* .5.. "
            ".* cannot move"
        ),
    ):
        build(name, data_root, tmp_path / "new", subsample, "new").load_model(
            str(tmp_path / "base")
        )


def test_a_head_of_other_folds_is_refused_by_name(data_root, tmp_path):
    trained("JOLT", data_root, tmp_path / "run", "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", "True")
    with pytest.raises(
        BlackBoxError,
        match=r"a head of another size, .*HEAD_FOLDS: 4 there, 2 here",
    ):
        build("JOLT", data_root, tmp_path / "other", "TRAINER.JOLT.HEAD_FOLDS", 2).load_model(
            str(tmp_path / "run")
        )
