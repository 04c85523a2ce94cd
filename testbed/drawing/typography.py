"""How figures for a paper look: matplotlib's settings, the width of a column, line styles, and files that are equal for equal content."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

FORMATS = ("pdf", "png", "svg")
COLUMN_INCHES = 3.4
"""Width of a column in two-column proceedings; a page is 7."""
STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42,  # TrueType, embedded, as publishers ask for
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "netllm-testbed",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 300,
}
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def save(figure: Figure, path: Path) -> Path:
    """Write the figure in the format of its ending, without a date; returns the path."""
    form = path.suffix[1:]
    figure.savefig(path, metadata={} if form == "png" else {"Date": None} if form == "svg" else {"CreationDate": None})
    return path
