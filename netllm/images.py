"""Features of video frames, made by a vision transformer in a user's folder (NetLLM, section 4.1, takes a ViT for viewport prediction).

The frozen ViT turns a frame into its class token; only the encoder behind it learns. No ViT comes with this project.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel

from testbed.errors import UserError

PREPROCESSOR = "preprocessor_config.json"
MEAN, DEVIATION = 0.5, 0.5
"""Of pixels from 0 to 1 where the ViT's folder tells none, as ViT-B/16 was trained with (Dosovitskiy et al., ICLR 2021)."""
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


class _Told(msgspec.Struct):
    """What matters here of `preprocessor_config.json`."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    size: int | dict[str, int | None]
    do_center_crop: bool | None = None
    crop_size: int | dict[str, int | None] | None = None


@dataclass(frozen=True)
class Preparation:
    """How a ViT wants its pictures: `sides` pixels high and wide, less `mean`, over `deviation` (red, green, blue from 0 to 1)."""

    sides: tuple[int, int]
    mean: tuple[float, float, float] = (MEAN,) * 3
    deviation: tuple[float, float, float] = (DEVIATION,) * 3


def preparation(folder: Path, image_size: int) -> Preparation:
    """As the folder's `preprocessor_config.json` says; without one `image_size` square. Never cropped: all of a frame may be looked at."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        return Preparation((image_size, image_size))
    try:
        told = msgspec.json.decode(path.read_bytes(), type=_Told)
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: {error}, wanted image_mean, image_std and size as transformers writes them") from error
    if not min(told.image_std) > 0:
        raise UserError(f"{path}: image_std is {told.image_std}, wanted numbers above 0")
    size = told.crop_size if told.do_center_crop and told.crop_size else told.size
    return Preparation(_sides(size, path), told.image_mean, told.image_std)


def _sides(size: int | dict[str, int | None], path: Path) -> tuple[int, int]:
    """One side, both sides, or the shortest one of a picture that would be cropped to a square."""
    told = {"shortest_edge": size} if isinstance(size, int) else size
    square = told.get("shortest_edge")
    height, width = told.get("height") or square, told.get("width") or square
    if not (height and width and min(height, width) > 0):
        raise UserError(f"{path}: the size is {size}, wanted height and width, or shortest_edge, in pixels")
    return height, width


class VitReader:
    """A frozen vision transformer."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise UserError(f"ViT {folder}: there is no config.json, wanted the folder of a Hugging Face vision transformer")
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True)
            self._preparation = preparation(folder, int(config.image_size))
            self.width = int(config.hidden_size)
            self._model.requires_grad_(False).eval()
            self._computed(np.zeros((1, 1, 3), dtype=np.uint8))  # a size that the model doesn't take shows here
        except (OSError, ValueError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"ViT {folder}: can't be loaded ({reason}), wanted a vision transformer with safetensors weights") from error
        self._kept: OrderedDict[tuple[tuple[int, ...], bytes], np.ndarray] = OrderedDict()

    def __call__(self, frames: Sequence[np.ndarray | None]) -> np.ndarray:
        """Class tokens, (N, width); each frame (height, width, 3) of bytes."""
        return np.stack([self._of(frame) for frame in frames])

    def _of(self, frame: np.ndarray | None) -> np.ndarray:
        if frame is None:
            return np.full(self.width, np.nan, dtype=np.float32)
        key = frame.shape, hashlib.blake2b(np.ascontiguousarray(frame).data).digest()
        if key not in self._kept:
            self._kept[key] = self._computed(frame)
        self._kept.move_to_end(key)
        while len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)
        return self._kept[key]

    @torch.inference_mode()
    def _computed(self, frame: np.ndarray) -> np.ndarray:
        pixels = torch.tensor(frame).permute(2, 0, 1)[None].float() / 255  # (1, 3, height, width)
        sized = nn.functional.interpolate(pixels, self._preparation.sides, mode="bilinear", antialias=True)
        mean, deviation = (torch.tensor(each)[:, None, None] for each in (self._preparation.mean, self._preparation.deviation))  # (3, 1, 1)
        hidden: torch.Tensor = self._model(pixel_values=(sized - mean) / deviation).last_hidden_state  # (1, tokens, width)
        return hidden[0, 0].numpy().copy()
