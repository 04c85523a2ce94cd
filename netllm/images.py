"""Features of video frames, made by a vision transformer in a user's folder (NetLLM, section 4.1, takes a ViT for viewport prediction).

The frozen ViT turns a frame into its class token; only the encoder behind it learns. No ViT comes with this project.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel

from testbed.errors import UserError

MEAN, DEVIATION = 0.5, 0.5
"""Of pixels from 0 to 1, as ViT-B/16 was trained with (Dosovitskiy et al., ICLR 2021; `ViTImageProcessor`'s defaults)."""
REMEMBERED = 256
"""Frames whose features are kept: viewers of one video see the same ones."""

ImageReader = Callable[[Sequence[np.ndarray | None]], np.ndarray | None]
"""Features of frames, (N, width), NaN where there is none; None when no image is told at all."""


def image_reader(vit: str | Path, width: int) -> ImageReader:
    """The reader for an adapter with `width` image features. Raises `UserError` when the ViT is missing, needless or another's."""
    if not width:
        if vit:
            raise UserError(f"ViT {vit}: this adapter was trained without frames, wanted no vit")
        return lambda frames: None
    if not vit:
        return lambda frames: np.full((len(frames), width), np.nan, dtype=np.float32)
    reader = VitReader(Path(vit).expanduser())
    if reader.width != width:
        raise UserError(f"ViT {vit}: makes {reader.width} features, wanted the {width} that the adapter was trained with")
    return reader


class VitReader:
    """A frozen vision transformer."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise UserError(f"ViT {folder}: there is no config.json, wanted the folder of a Hugging Face vision transformer")
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True)
            self._size = int(config.image_size)
            self.width = int(config.hidden_size)
        except (OSError, ValueError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"ViT {folder}: can't be loaded ({reason}), wanted a vision transformer with safetensors weights") from error
        self._model.requires_grad_(False).eval()
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __call__(self, frames: Sequence[np.ndarray | None]) -> np.ndarray:
        """Class tokens, (N, width); each frame (height, width, 3) of bytes."""
        return np.stack([self._of(frame) for frame in frames])

    def _of(self, frame: np.ndarray | None) -> np.ndarray:
        if frame is None:
            return np.full(self.width, np.nan, dtype=np.float32)
        key = frame.tobytes() if frame.size < 4096 else frame[::8, ::8].tobytes()
        if key not in self._kept:
            self._kept[key] = self._computed(frame)
        self._kept.move_to_end(key)
        while len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)
        return self._kept[key]

    @torch.inference_mode()
    def _computed(self, frame: np.ndarray) -> np.ndarray:
        pixels = torch.tensor(frame).permute(2, 0, 1)[None].float() / 255  # (1, 3, height, width)
        sized = nn.functional.interpolate(pixels, (self._size, self._size), mode="bilinear", antialias=True)
        hidden = self._model(pixel_values=(sized - MEAN) / DEVIATION).last_hidden_state  # (1, tokens, width)
        return hidden[0, 0].numpy().copy()
