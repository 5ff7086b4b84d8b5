"""SEAM as a run has it: the classifier's training builds its network, the maps' work loads it, and what follows can read the maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_classifier import SMALL, Make, Task, make_store, make_task  # noqa: F401

from seedbed import loop
from seedbed.artefacts import WEIGHTS, Stage
from seedbed.artefacts.records import maps_from, weights_from, weights_record
from seedbed.data.jitter import ColorJitter
from seedbed.methods.maps import CamConfig, high_res
from seedbed.methods.seam import SeamConfig
from seedbed.models.affinity import AffinityNet
from seedbed.models.irn import IrnNet
from seedbed.models.seam import SeamNet
from seedbed.optim import PolySGD
from seedbed.refine.affinitynet_task import AffinityConfig
from seedbed.refine.initial_backbone import fill_backbone
from seedbed.refine.irn_task import IrnConfig
from seedbed.seeds import label_map
from seedbed.types import UserError
from seedbed.work import LocaliseWork, load_classifier

SETTINGS = (SeamConfig(second_scale=0.5), CamConfig(scales=(1.0, 0.5)))
CONFIG = SMALL.replace(epochs=3, **{"transform.jitter": ColorJitter()})


def kept(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    stage = Stage(folder, "classifier", "c", WEIGHTS)
    with stage.writer() as writer:
        for name, value in weights.items():
            writer.add(weights_record(name, value.numpy(), value.numpy().dtype.str))
    return stage.folder


def localise(task: Any, classifier: Path, method: str, settings: tuple[Any, ...], **more: Any) -> Any:
    return LocaliseWork(task.store, None, classifier, "small", method, settings, None, "cpu", 1, **more).open()


def test_from_training_to_seeds(make_store: Make, make_task: Task, tmp_path: Path) -> None:  # noqa: F811
    store = make_store()
    task = make_task(store, CONFIG, method="seam", method_settings=SETTINGS)
    assert task.identity() != make_task(store, CONFIG).identity()
    assert task.identity() != make_task(store, CONFIG, method="seam", method_settings=(SeamConfig(), SETTINGS[1])).identity()
    loop.train(task, tmp_path / "run")
    lines = loop.read_log(tmp_path / "run")
    terms = [line["terms"] for line in lines if "terms" in line]
    assert set(terms[0]) == {"cls", "cls2", "rvmin", "er", "ecr"} and any("val/mAP" in line for line in lines)
    weights = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)
    classifier = kept(weights, tmp_path / "out")
    model = load_classifier(classifier, "small", 3, "cpu", "seam")
    assert isinstance(model, SeamNet) and not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())

    work = localise(task, classifier, "seam", SETTINGS)
    ident = next(i for i in store.ids("val") if store[i].labels.sum() > 1)
    record = work(ident)
    assert {n: v for n, v in work(ident).items() if n != "seconds"} == {n: v for n, v in record.items() if n != "seconds"}
    maps, sample = maps_from(record), store[ident]
    shape = sample.pixels().shape[:2]
    assert maps.inputs[0] == shape and maps.inputs[1] == tuple(int(np.round(side * 0.5)) for side in shape)
    full = high_res(maps)
    assert full.shape == (len(maps.classes), *shape) and full.max() < 1
    assert set(np.unique(label_map(full, maps.classes, 0.3, ident))) <= {0, *(maps.classes + 1)}
    plain = maps_from(localise(task, classifier, "cam", (SETTINGS[1],), trained_by="seam")(ident))
    assert not plain.inputs and not np.allclose(high_res(plain), full)
    with pytest.raises(UserError, match="SEAM needs its own network"):
        localise(task, kept(make_task(store).build().state_dict(), tmp_path / "plain"), "seam", SETTINGS, trained_by="cam")(ident)


def test_the_maps_feed_affinitynet(make_store: Make, make_task: Task, tmp_path: Path) -> None:  # noqa: F811
    """Both alphas of the confidence labels, and the walk's input, though the smallest values lie below 0."""
    pytest.importorskip("pydensecrf")
    from seedbed.refine.confidence import affinity_labels, affinity_scores

    store = make_store()
    task = make_task(store, CONFIG, method="seam", method_settings=SETTINGS)
    torch.manual_seed(0)
    classifier = kept(task.build().state_dict(), tmp_path / "out")
    ident = next(i for i in store.ids("val") if store[i].labels.sum() > 1)
    maps = maps_from(localise(task, classifier, "seam", SETTINGS)(ident))
    scores = [affinity_scores(store[ident].pixels(), high_res(maps), *pair) for pair in ((4, 24), (1, 24), (2, 4))]
    found = [affinity_labels(pair, maps.classes) for pair in scores]
    for labels in found:
        assert labels.shape == high_res(maps).shape[1:] and set(np.unique(labels)) <= {0, 255, *(maps.classes + 1)}


def test_parameter_groups(make_store: Make, make_task: Task) -> None:  # noqa: F811
    config = SMALL.replace(optimizer="sgd", schedule="poly", lr=0.01, weight_decay=5e-4, momentum=None, weights="none")
    task = make_task(make_store(), config, method="seam", method_settings=SETTINGS)
    task.config = task.config.replace(momentum=None)  # as with pre-trained weights
    model = task.build()
    optimizer = task.optimizer(model, 10)
    assert isinstance(optimizer, PolySGD)
    old, new = optimizer.param_groups
    assert {id(p) for p in new["params"]} == {id(getattr(model, n).weight) for n in ("f8_3", "f8_4", "f9", "fc8")}
    assert (old["lr"], new["lr"], old["weight_decay"], old["momentum"], new["momentum"]) == (0.01, 0.1, 5e-4, 5e-4, 5e-4)
    assert optimizer.schedule(5) == pytest.approx(0.5**0.9)


def test_refinements_take_its_backbone(tmp_path: Path) -> None:
    """With the weights `classifier` the networks of AffinityNet and IRN start from the backbone that lies below SEAM's layers."""
    classifier = kept(SeamNet("small", 3).state_dict(), tmp_path / "out")
    stored = weights_from(classifier)
    affinity, irn = AffinityConfig(backbone="small", weights="classifier"), IrnConfig(backbone="small", weights="classifier")
    for config, network in ((affinity, AffinityNet("small")), (irn, IrnNet("small"))):
        assert fill_backbone(network.backbone, config, classifier, "--refine.x").source == "classifier"
        assert all(torch.equal(value, stored[f"backbone.{name}"]) for name, value in network.backbone.state_dict().items())
