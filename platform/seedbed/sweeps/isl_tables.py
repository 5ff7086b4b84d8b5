"""The tables of HFPL's ablations (Jonnarth et al. 2024, section 5.5): Fig. 6, Tables 4, 5 and 6, and the choice of the gate.

All on SEAM, whose numbers they print and whose scores the multinomial form needs, and all of the final segmentation. AffinityNet's alphas
go with the loss, as Sec. 5.1 and 5.5 set them: 4 and 24 without ISL, 1 and 24 with the binomial one, 2 and 4 with the multinomial one; here
1 and 24 with the binomial FSL, too (Sec. 5.5). Alphas that are said count in every row.
"""

from __future__ import annotations

from dataclasses import replace

from seedbed.pipeline import Experiment
from seedbed.sweeps.space import Setting
from seedbed.sweeps.tables import Line, PaperTable, TableOf, printed

METRICS = ("mIoU", "F", "J_and_F")
WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SAMPLES = (1, 5, 10, 50, 100)


def _with_fsl(base: Experiment) -> dict[str, object]:
    """AffinityNet's alphas with the binomial FSL, as far as the base leaves them to the loss."""
    alphas = {"alpha_low": 1.0, "alpha_high": 24.0}
    return {f"refine__{name}": value for name, value in alphas.items() if getattr(base.refine, name) is None}


def _trained(*addons: str, **settings: object) -> Setting:
    return {"addons": addons, **{name.replace("__", "."): value for name, value in settings.items()}}


def weights(base: Experiment) -> PaperTable:
    """Fig. 6: the weight of ISL, without and with FSL; weight 0 is the training without it."""
    # Table 5 is at weight 1 and without FSL: its row of the base's number of positions is a point of this figure.
    at_one = printed("hfpl_table5", note=f"pixels={base.isl.samples}")
    lines = []
    for fsl in ((), ("fsl",)):
        for weight in WEIGHTS:
            label = f"{base.method.upper()}+ISL{'+FSL' if fsl else ''}, lambda = {weight:g}"
            curve = "ISL + FSL" if fsl else "ISL"
            if weight == 0 and not fsl:
                lines.append(Line(label, None, base.method, x=0.0, curve=curve))
            elif weight == 0:
                lines.append(Line(label, _trained("fsl", **_with_fsl(base)), x=0.0, curve=curve))
            else:
                setting = _trained("isl", *fsl, isl__weight=weight)
                value = at_one if weight == 1 and not fsl else {}
                lines.append(Line(label, setting, printed=value, default=weight == 0.2 and bool(fsl), x=weight, curve=curve))
    note = "printed gains in J&F: 1.6 of lambda 0.2 over 0, and 2.2 more with FSL (section 5.5); the curves themselves are a figure"
    source = f"HFPL, Fig. 6; the value at lambda = 1 from hfpl_table5 at N = {base.isl.samples}"
    table = _table("fig6", "Weight of ISL (HFPL, Fig. 6)", lines, "train", "isl.weight", source, note)
    return replace(table, axis_name="lambda, the weight of ISL", figure_metric="J_and_F")


def samples(base: Experiment) -> PaperTable:
    """Table 5: positions drawn for each class, at weight 1 and without FSL."""
    lines = []
    for n in SAMPLES:
        setting = _trained("isl", isl__weight=1.0, isl__samples=n)
        lines.append(Line(f"N = {n}", setting, printed=printed("hfpl_table5", note=f"pixels={n}"), default=n == 10, curve="ISL"))
    table = _table("5", "Drawn positions N (HFPL, Table 5)", lines, "train", "isl.samples", "hfpl_table5")
    return replace(table, axis_name="N, positions drawn for each class")


def posteriors(base: Experiment) -> PaperTable:
    """Table 4: binomial against multinomial, each at its own weight and alphas; FSL's mu and sigma learned in the multinomial original."""

    def row(name: str, posterior: str, label: str, setting: Setting) -> Line:
        value = printed("hfpl_table4", method=f"SEAM+{name}", note=f"posterior={posterior}")
        return Line(f"{name}, {label}", setting, printed=value, default=label == "binomial", group=name)

    first, second = "Multinomial ([19])", "Binomial (proposed)"
    lines = [
        row("ISL", first, "multinomial", _trained("isl", isl__weight=0.6, isl__posterior="multinomial")),
        row("ISL", second, "binomial", _trained("isl", isl__weight=0.2, isl__posterior="binomial")),
        row("FSL", first, "multinomial", _trained("fsl", fsl__gate="a", fsl__learned=True, fsl__classes="all")),
        row("FSL", second, "binomial", _trained("fsl", fsl__gate="r", fsl__learned=False, **_with_fsl(base))),
    ]
    return _table("4", "Binomial and multinomial posterior (HFPL, Table 4)", lines, "val", "", "hfpl_table4")


def gates(base: Experiment) -> PaperTable:
    """Section 5.5: what FSL's gate looks at, the max-normalized map r or the posterior b."""
    names = {"r": "gating function g on max-normalized CAM r", "b": "gating function g on posterior b"}
    lines = [
        Line(f"gate {gate}", _trained("fsl", fsl__gate=gate, **_with_fsl(base)), printed=printed("claims", note=note), default=gate == "r")
        for gate, note in names.items()
    ]
    note = "HFPL's section 5.5 does not print the split of the two gates' scores; val is inferred from Table 4"
    return _table("gate", "Gate of FSL (HFPL, section 5.5)", lines, "val", "", "HFPL, section 5.5", note)


def combinations(base: Experiment) -> PaperTable:
    """Table 6, the rows of SEAM on ResNet-38d; that of ISL and FSL together stands in Table 2."""

    def row(label: str, setting: Setting | None, table: str = "hfpl_table6", method: str = "") -> Line:
        value = printed(table, method=method or label, split="val", backbone="Res38")
        return Line(label, setting, "" if setting is not None else base.method, printed=value, default=setting is None)

    lines = [
        row("SEAM", None),
        row("SEAM+ISL", _trained("isl")),
        row("SEAM+FSL", _trained("fsl", **_with_fsl(base))),
        row("SEAM+ISL+FSL", _trained("isl", "fsl"), "hfpl_table2", "SEAM+ISL/FSL"),
    ]
    return _table("6", "Without and with ISL and FSL (HFPL, Table 6)", lines, "val", "", "hfpl_table6; of both hfpl_table2")


def _table(name: str, title: str, lines: list[Line], split: str, axis: str, source: str, note: str = "") -> PaperTable:
    return PaperTable(
        name=name,
        title=title,
        lines=tuple(lines),
        stage="segmentation",
        split=split,
        metrics=METRICS,
        base={"addons": ()},
        fixed={"data.segment_splits": (split,)},
        axis=axis,
        source=source,
        note=note,
        methods=("seam",),
    )


ISL_TABLES: dict[str, TableOf] = {"fig6": weights, "5": samples, "4": posteriors, "gate": gates, "6": combinations}
