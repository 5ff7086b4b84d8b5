"""What a refinement's network starts from below its new layers: this study's classifier, or weights that others trained."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from seedbed.artefacts.records import weights_from
from seedbed.models.resnet38 import plain_name
from seedbed.models.weights import LoadReport, load_weights
from seedbed.refine.affinitynet_settings import AffinityConfig
from seedbed.refine.irn_settings import IrnConfig
from seedbed.types import UserError


def fill_backbone(backbone: nn.Module, config: IrnConfig | AffinityConfig, classifier: Path | None, flags: str) -> LoadReport:
    """Fills a backbone as `config.weights` says; `flags` is what its settings' flags begin with.

    `classifier` is the folder of the classifier's artefact, of which all but the last layer is taken.
    """
    if config.weights != "classifier":
        return load_weights(backbone, config.weights, f"{flags}.weights")
    arrays = {} if classifier is None else {plain_name(name): value for name, value in weights_from(classifier).items()}
    own = backbone.state_dict()
    differ = [name for name, value in own.items() if name not in arrays or arrays[name].shape != value.shape]
    if differ:
        message = f"the classifier has no {config.backbone} as its backbone: {differ[0]} is missing or of another shape"
        remedy = f"choose the classifier's backbone with {flags}.backbone, or other weights"
        raise UserError(message, file=classifier, field=f"{flags}.weights", remedy=remedy)
    backbone.load_state_dict({name: arrays[name] for name in own})
    return LoadReport("classifier", tuple(own))
