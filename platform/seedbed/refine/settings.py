"""Settings of everything between the maps and the pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from seedbed.config import Settings, bounded, nested, setting
from seedbed.refine.affinitynet_settings import AffinityConfig
from seedbed.refine.crf import LabelCrfConfig, ScoreCrfConfig
from seedbed.refine.irn_settings import IrnConfig
from seedbed.types import UserError

_RIB = {"confident_foreground": 0.35, "confident_background": 0.17, "power": 1.3, "mask_background": 0.27, "irn.walk.pad": 512}
_SEAM = {"alpha_low": 4.0, "alpha_high": 24.0, "affinitynet.lr": 0.01, "affinitynet.alpha": 6.0, "affinitynet.squarings": 6}


@dataclass(frozen=True)
class RefineConfig(Settings):
    """From maps to pseudo-labels. Three pairs of thresholds that are easily confused (docs/protocol.md): labels that the refinement's
    network is trained on (confident-*), the mask that is scored (mask-background), labels that the segmenter is trained on (ignore-*)."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "rib": {**_RIB, **_SEAM},
        "rib_coco": {**_RIB, **_SEAM, "mask_background": 0.22, "irn.walk.pad": 0},
        "irn": {**_RIB, **_SEAM, "confident_foreground": 0.30, "confident_background": 0.05, "power": 1.0, "mask_background": 0.25},
        "psa": {**_RIB, **_SEAM, "alpha_high": 32.0, "affinitynet.lr": 0.1, "affinitynet.alpha": 16.0, "affinitynet.squarings": 8},
        "seam": {**_RIB, **_SEAM},
        "hfpl": {**_RIB, **_SEAM, "alpha_low": None, "alpha_high": None},
        "hfpl_multinomial": {**_RIB, **_SEAM, "alpha_low": 2.0, "alpha_high": 4.0},
    }

    preset: Literal["rib", "rib_coco", "irn", "psa", "seam", "hfpl", "hfpl_multinomial"] = setting("rib", key=False)
    """Whose thresholds, alphas and walk: RIB's, RIB's for COCO, IRN's; PSA's, SEAM's, HFPL's (of AffinityNet), those of its multinomial
    ISL. It does not choose the method."""
    method: Literal["irn", "affinitynet", "crf", "none"] = "irn"
    """irn: network of class boundaries and random walk (RIB, IRN); affinitynet: PSA's, as SEAM and HFPL have it; crf: dense CRF on the
    maps; none: the maps as they are."""
    confident_foreground: float = bounded(0.35, 0, 1)
    """IRN's training labels: an object is where the CRF says so with this constant background score. RIB: 0.35; IRN: 0.30."""
    confident_background: float = bounded(0.17, 0, 1)
    """IRN's training labels: background is where the CRF says so with this constant background score. RIB: 0.17; IRN: 0.05."""
    alpha_low: float | None = bounded(4.0, 0, 1000, open_low=True)
    """AffinityNet's training labels: exponent of the background score that makes objects small. PSA, SEAM: 4; HFPL: 1, multinomial 2.
    None: by what the classifier was trained with (HFPL, sections 5.1 and 5.5), 1 with ISL, 2 with a multinomial posterior, else 4."""
    alpha_high: float | None = bounded(24.0, 0, 1000, open_low=True)
    """AffinityNet's training labels: exponent that makes them large. PSA: 32; SEAM, HFPL: 24; multinomial 4. None: as alpha-low."""
    power: float = bounded(1.3, 0, 16, open_low=True)
    """IRN: exponent of the maps before they walk. RIB: 1.3; IRN: 1."""
    mask_background: float = bounded(0.27, 0, 1)
    """Constant background score of the mask that is scored (irn, crf, none). RIB: 0.27, on COCO 0.22; IRN: 0.25."""
    labels: Literal["auto", "thresholds", "mask"] = "auto"
    """What the segmenter is trained on: thresholds, with pixels between the two below ignored (RIB), or the mask itself, nothing ignored
    (PSA, SEAM, HFPL). auto: mask for affinitynet, else thresholds."""
    ignore_foreground: float = bounded(0.3, 0, 1)
    """Training labels: an object is where its score is above this. RIB, appendix: 0.3."""
    ignore_background: float = bounded(0.2, 0, 1)
    """Training labels: background is where every score is below this; what lies between is ignored. RIB, appendix: 0.2."""
    saliency: str = setting("", key=False)
    """Folder of saliency maps, ID.png, of any kind (8-bit, 0 and 1, soft): pixels where the labels disagree with them are
    ignored (RIB-Sal). Empty: none."""
    salient: float = bounded(0.5, 0, 1)
    """Share of full salience above which a pixel counts as salient."""
    crf_seeds: bool = setting(True)
    """Score the seeds after IRN's label CRF, too (rows `crf`; RIB's Table 1)."""
    label_crf: LabelCrfConfig = nested(LabelCrfConfig)
    score_crf: ScoreCrfConfig = nested(ScoreCrfConfig)
    irn: IrnConfig = nested(IrnConfig)
    affinitynet: AffinityConfig = nested(AffinityConfig)

    def to_dict(self, *, only_key: bool = False) -> dict[str, Any]:
        """In the key saliency stands as a fact; a stage's key has the content of the maps that it looks at."""
        out = super().to_dict(only_key=only_key)
        return {**out, "saliency": bool(self.saliency)} if only_key else out

    @property
    def has_network(self) -> bool:
        return self.method in ("irn", "affinitynet")

    @property
    def network_weights(self) -> str:
        """Initial weights of the refinement's network; empty without one."""
        return {"irn": self.irn.weights, "affinitynet": self.affinitynet.weights}.get(self.method, "")

    @property
    def alphas(self) -> tuple[float, float]:
        """Low and high; SEAM's where none are said."""
        return 4.0 if self.alpha_low is None else self.alpha_low, 24.0 if self.alpha_high is None else self.alpha_high

    def with_alphas(self, low: float, high: float) -> RefineConfig:
        """With these where none are said."""
        return self.replace(
            alpha_low=low if self.alpha_low is None else self.alpha_low, alpha_high=high if self.alpha_high is None else self.alpha_high
        )

    def ignores(self) -> bool:
        """Whether the training labels leave pixels out between two thresholds."""
        return self.labels == "thresholds" or (self.labels == "auto" and self.method != "affinitynet")

    def check_together(self, prefix: str) -> None:
        for pair in ("ignore", "confident"):
            foreground, background = getattr(self, f"{pair}_foreground"), getattr(self, f"{pair}_background")
            if foreground < background:
                flag = f"--{prefix}{pair}-foreground"
                message = f"{flag} is {foreground}, below {pair}-background, {background}: a pixel would be object and background"
                raise UserError(message, field=flag, remedy=f"give {pair}-foreground >= {pair}-background")
        low, high = self.alphas
        if self.method == "affinitynet" and low >= high:
            flag = f"--{prefix}alpha-low"
            raise UserError(f"{flag} is {low}, not below alpha-high, {high}", field=flag, remedy="give alpha-low < alpha-high")
