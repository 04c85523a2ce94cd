"""Where the project keeps what can be made again: converted weights, offline optima."""

import os
from pathlib import Path

CACHE_VARIABLE = "NETLLM_CACHE"
CHECKOUT = Path(__file__).resolve().parent.parent


def cache_folder() -> Path:
    """`$NETLLM_CACHE`, else `cache/` in the checkout; it may not exist yet."""
    return Path(os.environ.get(CACHE_VARIABLE) or CHECKOUT / "cache")
