"""One look for all figures: theme, style, and the drawing as SVG that follows the page's colors, and as files.

Figures are drawn in the light theme. In the page every color of the theme becomes a CSS variable, so that light and dark share one drawing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THEME = {
    "ink": "#1e2a26", "soft": "#5c6a64", "line": "#d8ddd6", "sheet": "#fffefb",
    "cam": "#b05f0a", "rib": "#0d7a63", "third": "#5b57b8", "fourth": "#a8326e",
    "margin": "#0d7a64", "area": "#b05f0b", "steps": "#8b98a5", "companions": "#b3261e",
}  # fmt: skip
"""Name -> color in the light theme, as in page.css. All differ, so that each can be found again in the drawing."""


Draw = Callable[[Any], None]


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    caption: str
    alt: str
    """The content in words, for who does not see it."""
    size: tuple[float, float]
    """Inches at 72 dots each: about CSS pixels of the widest column it stands in."""
    draw: Draw

    def drawn(self) -> Drawn:
        """The drawing, made once."""
        import matplotlib
        from matplotlib.figure import Figure as Canvas

        svg, png = io.BytesIO(), io.BytesIO()
        with matplotlib.rc_context(_style(self.name)):
            canvas = Canvas(figsize=self.size, layout="constrained")
            self.draw(canvas)
            canvas.savefig(svg, format="svg", dpi=72, metadata={"Date": None})
            canvas.savefig(png, format="png", dpi=180)
        return Drawn(self, svg.getvalue().decode(), png.getvalue())


@dataclass(frozen=True)
class Drawn:
    figure: Figure
    svg: str
    png: bytes

    def write(self, folder: Path) -> None:
        """NAME.svg and NAME.png in the light theme."""
        (folder / f"{self.figure.name}.svg").write_text(self.svg, encoding="utf-8")
        (folder / f"{self.figure.name}.png").write_bytes(self.png)

    def markup(self) -> str:
        """For the page: colors as CSS variables, text as text in the page's own font, no names that another drawing could have too."""
        name, alt = self.figure.name, _escaped(self.figure.alt)
        text = self.svg[self.svg.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
        text = re.sub(r"\s*\n\s*", " ", re.sub(r'<g id="[^"]*"', "<g", text))
        opening = f'<svg viewBox="\\1" role="img" aria-labelledby="{name}-alt" stroke-linejoin="round"><title id="{name}-alt">'
        text = re.sub(r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', opening, text).replace('-alt">', f'-alt">{alt}</title>', 1)
        for variable, color in THEME.items():
            text = text.replace(color, f"var(--{variable})")
        return re.sub(r"font-family: [^;]*; ?", "", text)


def _theme_name(method: str) -> str:
    known = method.lower()
    return known if known in ("cam", "rib") else ("third", "fourth")[sum(map(ord, known)) % 2]


def color_of(method: str) -> str:
    """A method has the same color in every figure."""
    return THEME[_theme_name(method)]


def color_variable(method: str) -> str:
    """The same as the page's style sheet names it."""
    return f"var(--{_theme_name(method)})"


def _style(name: str) -> dict[str, Any]:
    return {
        "svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 10,
        "axes.labelsize": 10,
        "text.color": THEME["ink"], "axes.labelcolor": THEME["soft"], "axes.edgecolor": THEME["line"], "axes.linewidth": 1,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": THEME["line"],
        "grid.linewidth": 0.8, "xtick.color": THEME["soft"], "ytick.color": THEME["soft"], "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
        "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 2, "lines.solid_capstyle": "round", "hatch.linewidth": 1.2,
        "legend.fontsize": 9.5, "legend.facecolor": THEME["sheet"], "legend.edgecolor": THEME["sheet"], "legend.framealpha": 0.85,
        "legend.handlelength": 1.2, "figure.facecolor": THEME["sheet"], "axes.facecolor": "none", "savefig.facecolor": THEME["sheet"],
        "legend.borderaxespad": 0.2,
    }  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
