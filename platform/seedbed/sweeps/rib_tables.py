"""The tables of RIB's ablations (Lee et al. 2021, section 4.3 and appendix): 5(a), 5(b), 5(c), S1, and Fig. 5.

Margin, learning rate, batch and steps are the paper's where the base has the paper's own (600, 8e-6, 20, 10); a base of another scale
(the shapes set, a smoke run) gets the same multiples of its own. tau is a share of a map's maximum and has no scale.
"""

from __future__ import annotations

from seedbed.pipeline import Experiment
from seedbed.sweeps.tables import Line, PaperTable, TableOf, once, printed, scaled

CAM = {"method": "cam"}
RIB = ("rib",)
M, LR, B, K = 600.0, 8e-6, 20, 10
"""The paper's own setting."""


def activations(base: Experiment) -> PaperTable:
    """Table 5(a): what the fine-tuning minimizes."""

    def row(label: str, loss: str, name: str) -> Line:
        return Line(label, {"rib.loss": loss}, printed=printed("rib_table5a", method=name), default=loss == "rib")

    return PaperTable(
        name="5a",
        title="Fine-tuning loss (RIB, Table 5a)",
        lines=(
            Line("Init. (CAM)", None, "cam", printed("rib_table5a", method="Init.")),
            row("BCE with tanh", "bce_tanh", "BCE w/. Tanh"),
            row("BCE with sigmoid", "bce_sigmoid", "BCE w/. Sigmoid"),
            row("BCE with softsign", "bce_softsign", "BCE w/. Softsign"),
            row("L_RIB", "rib", "L_RIB"),
        ),
        base=CAM,
        methods=RIB,
        source="rib_table5a",
    )


def margins(base: Experiment) -> PaperTable:
    """Table 5(b): margin and learning rate."""
    lines = []
    for m, lr, text in ((300, 8e-6, "8e-6"), (600, 5e-6, "5e-6"), (600, 8e-6, "8e-6"), (600, 1e-5, "1e-5"), (1000, 8e-6, "8e-6")):
        mine = {"rib.margin": scaled(base.rib.margin, M, float(m)), "rib.lr": scaled(base.rib.lr, LR, lr)}
        label = f"m = {mine['rib.margin']:g}, lambda = {mine['rib.lr']:g}"
        value = printed("rib_table5b", note=f"m={m}; lambda={text}")
        lines.append(Line(label, mine, printed=value, default=(m, lr) == (M, LR), curve=f"lambda = {mine['rib.lr']:g}"))
    note = "" if (base.rib.margin, base.rib.lr) == (M, LR) else f"m and lambda as multiples of {base.rib.margin:g} and {base.rib.lr:g}"
    return PaperTable(
        name="5b",
        title="Margin m and learning rate lambda (RIB, Table 5b)",
        lines=tuple(lines),
        base=CAM,
        methods=RIB,
        axis="rib.margin",
        axis_name="margin m",
        source="rib_table5b",
        note=note,
    )


def pooling(base: Experiment) -> PaperTable:
    """Table 5(c): GAP, and GNDRP at several tau."""
    lines = [
        Line("CAM", None, "cam", printed("rib_table5c", method="CAM")),
        Line("RIB-GAP", {"rib.pooling": "gap"}, printed=printed("rib_table5c", method="RIB-GAP")),
    ]
    for tau in (0.3, 0.4, 0.5):
        value = printed("rib_table5c", method="RIB-GNDRP", note=f"tau={tau}")
        lines.append(
            Line(f"RIB-GNDRP (tau = {tau})", {"rib.tau": tau, "rib.pooling": "gndrp"}, printed=value, default=tau == 0.4, curve="RIB-GNDRP")
        )
    title = "Pooling and its threshold tau (RIB, Table 5c)"
    return PaperTable(
        name="5c", title=title, lines=tuple(lines), base=CAM, methods=RIB, axis="rib.tau", axis_name="tau", source="rib_table5c"
    )


def batches(base: Experiment) -> PaperTable:
    """Table S1: pictures in the batch. B = 1 is the target alone."""
    alone = {"rib.companions": "none"} if base.rib.target_rows == "scales" else {}  # there B counts the others only
    lines = []
    for b in (1, 5, 10, 15, 20, 25, 30):
        size = 1 if b == 1 else int(scaled(base.rib.batch, B, b))
        setting = {"rib.batch": size, **(alone if b == 1 else {})}
        label = "B = 1 (the target alone)" if b == 1 else f"B = {size}"
        lines.append(Line(label, setting, printed=printed("rib_tableS1", note=f"B={b}"), default=b == B))
    note = "" if base.rib.batch == B else f"B as multiples of {base.rib.batch}"
    return once(
        PaperTable(
            name="S1",
            title="Batch size B (RIB, Table S1)",
            lines=tuple(lines),
            base=CAM,
            methods=RIB,
            axis="rib.batch",
            axis_name="batch size B",
            source="rib_tableS1",
            note=note,
        )
    )


def iterations(base: Experiment) -> PaperTable:
    """Fig. 5: the score over the steps, with GAP and with GNDRP; and GNDRP with twice as many (section 4.3).

    Under a constant learning rate every K is a trial, cut out of the longest; under the official schedule K = 10 is one run with the
    map of every step k, and K = 20 a run of its own.
    """
    k = base.rib.steps
    constant = base.rib.schedule == "constant"
    printed_at = {"gap": printed("rib_table5c", method="RIB-GAP"), "gndrp": printed("rib_table5c", method="RIB-GNDRP", note="tau=0.4")}
    lines = [Line("CAM", None, "cam", printed("rib_table5c", method="CAM"))]
    for pool in ("gap", "gndrp"):
        for steps in (*(range(1, k) if constant else ()), k, *((2 * k,) if pool == "gndrp" else ())):
            setting = {"rib.pooling": pool, "rib.steps": steps}
            value = printed_at[pool] if steps == k else {}
            name, own = f"RIB-{pool.upper()}", pool == "gndrp" and steps == k
            lines.append(Line(f"{name}, K = {steps}", setting, printed=value, default=own, curve=name))
    return PaperTable(
        name="fig5",
        title="Steps K, with GAP and with GNDRP (RIB, Fig. 5)",
        lines=tuple(lines),
        base=CAM,
        methods=RIB,
        fixed={"rib.snapshots": True},
        axis="rib.steps",
        axis_name="steps K",
        over_k=not constant,
        source="RIB, Fig. 5; the values at K = 10 from rib_table5c",
    )


RIB_TABLES: dict[str, TableOf] = {"5a": activations, "5b": margins, "5c": pooling, "S1": batches, "fig5": iterations}
