"""Weights that have 16 levels, kept as such: a single row is multiplied with a quarter of the memory that bfloat16 reads.

The embedded backbone was published in 4 bits (GGUF's Q4_1: in each row, every 32 weights share a scale and a least value). Its weights,
kept in bfloat16 whatever they are computed in, have 16 levels a group still, and are found again as such, off by 0.4 to 0.5 % of a weight
as the kernel multiplies them. Decisions are as near to those in float32 as bfloat16's are, for sums average it out. PyTorch's kernel for
such weights is made for few rows.
"""

import torch

GROUP = 32
"""Weights that share a scale and a least value, along a row."""
LEVELS = 16
TOLERANCE = 0.005
"""Root mean square of what a level may be off, over that of the weights. Weights that never had 16 levels are off by ten times as much."""
ROWS_MULTIPLE = 16
"""Rows that PyTorch's kernel takes at once."""
VECTORISED = ("AVX2", "AVX512")
"""Processors for which the kernel is written; on others PyTorch takes a loop that is many times slower than bfloat16's."""
INNER_TILES = 1
"""A layout that PyTorch asks for; on CPUs it ignores it."""


class Packed:
    """A matrix (outputs, inputs) of 16 levels a group, in the layout of PyTorch's kernel."""

    def __init__(self, levels: torch.Tensor, scale: torch.Tensor, middle: torch.Tensor) -> None:
        """`levels` (outputs, inputs), 0 to 15; a weight is (level - 8) * scale + middle; those two (outputs, groups)."""
        self._levels = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), INNER_TILES)
        self._affine = torch.stack([scale.T, middle.T], dim=2).to(torch.bfloat16).contiguous()  # (groups, outputs, 2)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, inputs) to (rows, outputs), of the same type; what is multiplied is rounded to bfloat16."""
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), self._levels, GROUP, self._affine)
        return product.to(x.dtype)


def pack(weight: torch.Tensor) -> Packed | None:
    """`weight` (outputs, inputs) as 16 levels a group; None when it isn't that, or when the kernel does not suit it or the processor."""
    outputs, inputs = weight.shape
    if torch.backends.cpu.get_cpu_capability() not in VECTORISED:
        return None
    if inputs % GROUP or outputs % ROWS_MULTIPLE:
        return None
    groups = weight.detach().float().view(outputs, -1, GROUP)
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((most - least) / (LEVELS - 1)).bfloat16().float().clamp(min=torch.finfo(torch.bfloat16).tiny)
    middle = (least + LEVELS // 2 * scale).bfloat16().float()
    levels = ((groups - middle) / scale + LEVELS // 2).round().clamp(0, LEVELS - 1)
    off = (levels - LEVELS // 2) * scale + middle - groups
    if off.pow(2).mean() > TOLERANCE**2 * groups.pow(2).mean():
        return None
    return Packed(levels.view(outputs, inputs), scale.squeeze(-1), middle.squeeze(-1))
