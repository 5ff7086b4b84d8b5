"""What the study of mu and sigma shows: the table in the terminal, the figure, the page, the numbers in a file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seedbed.analysis import fsl_parameters as fsl
from seedbed.analysis.fsl_study import PAPER, Found
from seedbed.report.drawing import THEME, Figure

COLUMNS = {"mu": 8, "sigma": 8, "J": 8, "F": 8, "J&F": 8, "95 % interval": 16, "steps": 8, "same stop": 11, "minus paper's, interval": 26}
"""Heading and width."""
CURVES = (("J", "J", "cam", "-"), ("F", "F", "third", "-"), ("J_and_F", "J&F", "rib", "-"), ("same_stop", "J&F, same stop", "rib", ":"))
GATES = {"b": "rib", "s": "fourth", "r": "steps"}


def row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def told(found: Found) -> list[str]:
    """The protocol, both curves, where the best lies, and the paper's three statements."""
    study, curves, kept = found.study, found.curves(), found.study.kept()
    lines = [
        f"{len(found.subjects)} pictures of a single object, {study.draws} draws of one per class ({', '.join(found.classes)}), "
        f"a tenth of their size; gate {study.gate}, at most {study.steps} steps of rate {study.lr:g}, random seed {study.seed}",
    ]
    if found.missing:
        lines.append(f"{len(found.missing)} other classes of the store have no such picture")
    start = fsl.class_mean(found.values[:, 0, 0], found.of)
    lines += [f"the Gaussian map itself: J {start[0]:.1f}, F {start[1]:.1f}, J&F {start.mean():.1f}", "", row(list(COLUMNS))]
    sides = {"mu": [(mu, PAPER[1]) for mu in study.mus], "sigma": [(PAPER[0], sigma) for sigma in study.sigmas]}
    for pairs in sides.values():
        for pair in pairs:
            c = curves[pair]
            numbers = [f"{c[name]:.1f}" for name in ("J", "F", "J_and_F")]
            interval = f"{c['low']:.1f} to {c['high']:.1f}"
            gain = f"{c['gain']:+.1f}, {c['gain_low']:+.1f} to {c['gain_high']:+.1f}"
            lines.append(row([f"{pair[0]:g}", f"{pair[1]:g}", *numbers, interval, str(c["steps"]), f"{c['same_stop']:.1f}", gain]))
        lines.append("")
    lines.append(
        f"J, F, J&F after the number of steps that is best for the setting; `same stop`: J&F after {kept[found.same_stop()]} for all;"
    )
    lines.append(
        "minus paper's: J&F less that of mu 2.5 and sigma 5 on the same pictures; intervals: pictures drawn again within their class"
    )
    for key, (name, pairs) in enumerate(sides.items()):
        best, same = (max(pairs, key=lambda pair: curves[pair][what])[key] for what in ("J_and_F", "same_stop"))
        votes = ", ".join(f"{v:g} ({n} times)" for v, n in sorted(found.best_of_draws()[key].items()))
        lines.append(f"best {name}: {best:g} (same stop: {same:g}), the paper's is {PAPER[key]:g}; best in single draws: {votes}")
    shown = range(0, len(kept), max(1, len(kept) // 6))
    lines.append(f"at mu 2.5 and sigma 5, J&F after {', '.join(str(kept[i]) for i in shown)} steps:")
    lines += [f"  gate {gate}: {', '.join(f'{values[i].mean():.1f}' for i in shown)}" for gate, values in found.gates.items()]
    s = {name: f"{100 * value:.1f} %" for name, value in fsl.statements().items()}
    return [
        *lines,
        f"paper: 39 % of the weight within 5 pixels; computed {s['within sigma']}, on the grid {s['within sigma, grid']}",
        f"paper: 86 % within 10 pixels; computed {s['within 2 sigma']}, on the grid {s['within 2 sigma, grid']}",
        f"paper: alike below a color distance of 0.076; computed {fsl.statements()['delta']:.4f}",
    ]


def numbers(found: Found, seconds: float) -> dict[str, Any]:
    """What the file holds, and all that the figure needs."""
    return {
        "settings": found.study.to_dict(),
        "pictures": {s.id: s.class_index for s in found.subjects},
        "curves": [{"mu": mu, "sigma": sigma, **values} for (mu, sigma), values in found.curves().items()],
        "steps": found.study.kept(),
        "gates": {gate: values.tolist() for gate, values in found.gates.items()},
        "statements": dict(fsl.statements()),
        "seconds": seconds,
    }


def figure(of: Mapping[str, Any]) -> Figure:
    """Of the numbers, as the file holds them."""

    def draw(canvas: Any) -> None:
        panels = canvas.subplots(1, 3, sharey=True)
        for axes, (name, other, papers) in zip(panels, (("mu", "sigma", PAPER[0]), ("sigma", "mu", PAPER[1])), strict=False):
            fixed = PAPER[1] if name == "mu" else PAPER[0]
            points = sorted((c for c in of["curves"] if c[other] == fixed), key=lambda c: c[name])
            x = [c[name] for c in points]
            axes.fill_between(x, [c["low"] for c in points], [c["high"] for c in points], color=THEME["rib"], alpha=0.15, linewidth=0)
            for key, label, color, line in CURVES:
                style = {"color": THEME[color], "marker": "o", "markersize": 3, "label": label if name == "mu" else None}
                axes.plot(x, [c[key] for c in points], line, **style)
            axes.axvline(papers, color=THEME["soft"], linewidth=1, linestyle=(0, (1, 2)))
            axes.set_xlabel(f"{name} ({other} = {fixed:g})")
        for gate, color in GATES.items():
            y = [(j + f) / 2 for j, f in of["gates"][gate]]
            at = y.index(max(y)) if gate != "r" else len(y) - 1
            panels[2].plot(of["steps"], y, color=THEME[color])
            panels[2].annotate(
                f"gate {gate}", (of["steps"][at], y[at]), (0, 5 if gate != "r" else -13), textcoords="offset points", ha="center"
            )
        panels[2].margins(x=0.1, y=0.12)
        panels[2].set_xlabel("steps (mu = 2.5, sigma = 5)")
        panels[0].set_ylabel("percent")
        canvas.legend(loc="outside upper left", ncols=4, frameon=False)

    caption = (
        "J, F and their mean, each setting after the number of its steps that is best for it, with the bootstrap interval of J&F over the "
        "pictures; dotted: all after the same number of steps. Vertical: the paper's mu and sigma. Right: J&F over the steps, by gate."
    )
    return Figure("fsl_parameters", "mu and sigma of the feature similarity loss", caption, caption, (9.5, 3.3), draw)


def write(found: Found, lines: Sequence[str], seconds: float) -> Path:
    """OUT/fsl_parameters.json, OUT/figures/fsl_parameters.png, and OUT/report.html, which holds the figure itself; returns the page."""
    out = Path(found.study.out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    of = numbers(found, seconds)
    plot = figure(of)
    png = plot.drawn().png
    (out / "figures" / f"{plot.name}.png").write_bytes(png)
    (out / "fsl_parameters.json").write_text(json.dumps(of, indent=1) + "\n", encoding="utf-8")
    title, alt, image = html.escape(plot.title), html.escape(plot.alt), base64.b64encode(png).decode()
    style = (
        "body{font:1rem/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}pre{overflow-x:auto}"
    )
    page = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>',
        f"<h1>{title}</h1><p>Section S.1 of HFPL (Jonnarth et al., WACV 2024), Figure 7, computed again.</p>",
        f'<figure><img alt="{alt}" src="data:image/png;base64,{image}"><figcaption>{html.escape(plot.caption)}</figcaption></figure>',
        "<pre>", html.escape("\n".join(lines)), "</pre>",
        f"<p>Settings: <code>{html.escape(json.dumps(found.study.to_dict()))}</code></p></html>",
    ]  # fmt: skip
    (out / "report.html").write_text("\n".join(page) + "\n", encoding="utf-8")
    return out / "report.html"
