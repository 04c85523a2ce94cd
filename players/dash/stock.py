"""dash.js's own rules as policies of an experiment: they decide in the browser, so no file in `controllers/abr/` stands behind them."""

from dataclasses import dataclass

from players.dash.messages import Decides


@dataclass(frozen=True)
class StockRule:
    """How a rule is named and shown. Beside each, dash.js's helper rules act as by default (docs/dashjs.md)."""

    decides: Decides
    label: str
    colour: str
    citation: str


STOCK = {
    "dashjs_bola": StockRule("bola", "dash.js BOLA", "#5f3dc4", "BolaRule of dash.js 5; Spiteri et al., INFOCOM 2016"),
    "dashjs_throughput": StockRule("throughput", "dash.js throughput", "#087f5b", "ThroughputRule of dash.js 5"),
    "dashjs_dynamic": StockRule("dynamic", "dash.js dynamic", "#a61e4d", "DYNAMIC of dash.js 5; Spiteri et al., MMSys 2018"),
}
"""By the policy's name."""
