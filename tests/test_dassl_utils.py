"""What this project relies on in Dassl's utilities: registries, files, meters, checkpoints."""

import io
import random
import re
import sys

import numpy as np
import pytest
import torch
from contract import saved
from dassl import utils
from torch.nn import Linear, Sequential


def test_registry_and_nearest_name():
    registry, first, second = utils.Registry("THING"), type("Thing", (), {}), type("Thing", (), {})
    assert registry.register()(first) is first
    with pytest.raises(KeyError, match="Thing.*THING"):
        registry.register(second)
    assert registry.get("Thing") is first
    registry.register(second, force=True)
    assert registry.get("Thing") is second and registry.registered_names() == ["Thing"]
    with pytest.raises(KeyError, match="Nothing.*THING"):
        registry.get("Nothing")

    utils.check_availability("Food101", ["Food101"])
    with pytest.raises(ValueError, match=r"\[Caltech\] \(do you mean \[Caltech101\]\?\)"):
        utils.check_availability("Caltech", ["Food101", "Caltech101", "UCF101"])
    assert utils.get_most_similar_str_to_a_from_b("ab", ["ax", "ay"]) == "ay"  # the last of equals


def test_files_and_seeds(tmp_path, root):
    path = tmp_path / "new" / "x.json"
    utils.write_json({"a": [1, "b"]}, str(path))
    assert utils.read_json(str(path)) == {"a": [1, "b"]} and path.read_text().startswith(
        '{\n    "a": [\n        1,\n'
    )
    utils.mkdir_if_missing(str(path.parent))  # already there
    (path.parent / ".hidden").touch(), (path.parent / "a.json").touch()
    assert utils.listdir_nohidden(str(path.parent), sort=True) == [
        "a.json",
        "x.json",
    ] and utils.check_isfile(str(path))
    with pytest.warns(UserWarning, match="No file found"):
        assert not utils.check_isfile(str(path) + "x")
    assert utils.read_image(f"{root}/val_0_1.png").getpixel((0, 0)) == (11, 20, 30)
    assert utils.tolist_if_not("a") == ["a"] == utils.tolist_if_not(["a"])
    utils.set_random_seed(3)
    drawn = random.random(), np.random.rand(), torch.rand(1)
    assert drawn == (
        random.Random(3).random(),
        np.random.RandomState(3).rand(),
        torch.rand(1, generator=torch.manual_seed(3)),
    )


def test_logger_keeps_an_existing_log(tmp_path, monkeypatch):
    for words in ("first", "second"):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        utils.setup_logger(str(tmp_path))
        print(words, flush=True)
        assert sys.stdout.console.getvalue() == words + "\n"
    old, new = sorted(tmp_path.iterdir())
    assert old.name == "log.txt" and re.fullmatch(r"log\.txt(-\d\d\d\d)(-\d\d){5}", new.name)
    assert old.read_text() == "first\n" and new.read_text() == "second\n"


def test_meters():
    meter, mean, ema = utils.MetricMeter(), utils.AverageMeter(), utils.AverageMeter(ema=True)
    (
        meter.update({"loss": torch.tensor(1.0), "acc": 50}),
        meter.update({"loss": 2.0}),
        meter.update(None),
    )
    assert str(meter) == "loss 2.0000 (1.5000) acc 50.0000 (50.0000)"
    with pytest.raises(TypeError):
        meter.update(1.0)
    mean.update(1.0, n=3), mean.update(torch.tensor(5.0)), ema.update(1.0), ema.update(2.0)
    assert (mean.val, mean.avg, mean.sum, mean.count) == (
        5.0,
        2.0,
        8.0,
        4,
    ) and ema.avg == pytest.approx(0.29)


def test_checkpoints(tmp_path, capsys):
    source, target, folder = Linear(2, 1), Linear(2, 1), str(tmp_path / "a/b")
    optim, other = (
        torch.optim.SGD(source.parameters(), lr=0.5),
        torch.optim.SGD(target.parameters(), lr=0.1),
    )
    state = {"module." + key: value for key, value in source.state_dict().items()}
    for epoch in (1, 2):
        checkpoint = {"state_dict": dict(state), "epoch": epoch, "optimizer": optim.state_dict()}
        utils.save_checkpoint(checkpoint, folder, is_best=epoch == 1)
    utils.save_checkpoint(
        {"state_dict": state, "epoch": 9}, folder, remove_module_from_keys=False, model_name="named"
    )
    names = {"checkpoint", "model-best.pth.tar", "model.pth.tar-1", "model.pth.tar-2", "named"}
    assert {p.name for p in (tmp_path / "a/b").iterdir()} == names
    assert (tmp_path / "a/b/checkpoint").read_text() == "named\n" and saved(
        f"{folder}/model-best.pth.tar"
    )["epoch"] == 1
    assert set(saved(f"{folder}/named")["state_dict"]) == set(state)
    assert set(saved(f"{folder}/model.pth.tar-2")["state_dict"]) == {"weight", "bias"}
    lines = [
        f"Checkpoint saved to {folder}/model.pth.tar-1",
        f'Best checkpoint saved to "{folder}/model-best.pth.tar"',
    ]
    assert capsys.readouterr().out.splitlines()[:2] == lines

    (tmp_path / "a/b/checkpoint").write_text("model.pth.tar-2\n")
    assert utils.resume_from_checkpoint(folder, target, other) == 2
    assert torch.equal(target.weight, source.weight) and other.param_groups[0]["lr"] == 0.5
    with pytest.raises(FileNotFoundError):
        utils.load_checkpoint(folder + "/no")


def test_pretrained_weights_and_open_layers(tmp_path, capsys):
    source, model, path = (
        Sequential(Linear(2, 3), Linear(3, 4)),
        Sequential(Linear(2, 3), Linear(3, 5)),
        str(tmp_path / "w"),
    )
    torch.save(
        {"state_dict": {"module." + key: value for key, value in source.state_dict().items()}}, path
    )
    utils.load_pretrained_weights(model, path)
    assert torch.equal(model[0].weight, source[0].weight)
    assert "unmatched keys or size: ['1.weight', '1.bias']" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="Cannot load"):
        utils.load_pretrained_weights(Linear(7, 7), path)
    utils.open_specified_layers(model, "1")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert [m.training for m in model] == [False, True]
    utils.open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model)
    assert (
        utils.count_num_param(model) == 29 == utils.count_num_param(params=list(model.parameters()))
    )
