"""Which viewings of Jin2022 (and Wu2017) are for training, validation and test: NetLLM's split, which shares neither videos nor viewers.

A split is the product of its videos and its viewers: 630, 126 and 126 of the 2268 viewings. The rest (a training video seen by a test
viewer, say) belongs to none. `refuse_leaks` proves it for whatever trains something.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from testbed.errors import UserError, suggestion
from traces.leakage import RUN
from traces.store import obtain
from traces.viewports import FRONT_DEG, HeadMovement, read_head_movement

DATASET, OTHER = "viewports", "viewports_wu2017"
"""Names in the catalogue: of Jin2022, on which everything is trained, and of Wu2017, whose viewers and videos are all unknown to that."""
TEST = "test"
WU_VALID, WU_TEST = "wu2017-valid", "wu2017-test"


@dataclass(frozen=True)
class ViewingSplit:
    """Every one of `users` watching every one of `videos`, in the order of the published code."""

    name: str
    videos: tuple[int, ...]
    users: tuple[int, ...]
    dataset: str = DATASET

    @property
    def front_deg(self) -> float | None:
        """The yaw at which viewers look ahead, where all videos have the same."""
        return FRONT_DEG if self.dataset == DATASET else None


SPLITS = {
    split.name: split
    for split in (
        ViewingSplit(
            "train",
            videos=(1, 5, 9, 2, 6, 11, 15, 16, 13, 17, 21, 22, 26, 19, 23),
            users=(
                50, 54, 6, 34, 66, 63, 52, 39, 62, 46, 75, 28, 65, 18, 37, 13, 80, 33, 69, 78, 19,
                40, 10, 43, 61, 72, 56, 41, 79, 82, 27, 71, 57, 67, 8, 2, 12, 81, 1, 64, 32, 42,
            ),
        ),
        ViewingSplit(
            "valid",
            videos=(3, 7, 12, 10, 20, 27),
            users=(9, 25, 73, 29, 31, 70, 58, 11, 14, 38, 16, 76, 77, 74, 24, 5, 17, 20, 51, 68, 36),
        ),
        ViewingSplit(
            TEST,
            videos=(4, 8, 14, 18, 24, 25),
            users=(83, 15, 3, 35, 48, 22, 55, 4, 45, 60, 26, 21, 44, 23, 53, 84, 59, 49, 7, 47, 30),
        ),
        ViewingSplit(WU_VALID, videos=(8, 2), users=(40, 20, 14, 1, 31, 12, 33, 27, 10), dataset=OTHER),
        ViewingSplit(WU_TEST, videos=(3, 5), users=(16, 7, 46, 5, 35, 2, 41, 47, 13), dataset=OTHER),
    )
}  # fmt: skip
"""`dataset_video_split_360` and `dataset_user_split_360` of NetLLM's `viewport_prediction/config.py` at the catalogued commit."""


def find_split(name: str) -> ViewingSplit:
    """The split called `name`."""
    if name not in SPLITS:
        raise UserError(f"{DATASET} has no split {name!r}: {suggestion(name, SPLITS)}")
    return SPLITS[name]


def load_split(name: str, root: str | Path | None = None, fetch: bool = True) -> tuple[HeadMovement, ...]:
    """The viewings of a split, video by video; the whole set is fetched if need be (and allowed), and its hash checked."""
    split = find_split(name)
    folder, lack = obtain(split.dataset, root, fetch)
    if folder is None:
        raise UserError(
            f"data set {split.dataset} is not on this machine ({lack}), wanted it there: run scripts/fetch_data {split.dataset}"
        )
    return _read(folder, split.videos, split.users)


@cache
def _read(folder: Path, videos: tuple[int, ...], users: tuple[int, ...]) -> tuple[HeadMovement, ...]:
    return tuple(read_head_movement(viewing_file(folder, video, user), video, user) for video in videos for user in users)


def viewing_file(folder: Path, video: int, user: int) -> Path:
    """Where upstream keeps a viewing."""
    return folder / f"video{video}" / "5Hz" / f"simple_5Hz_user{user}.csv"


def refuse_leaks(training: Sequence[HeadMovement], against: Iterable[str] = (TEST,)) -> None:
    """Raise `UserError` when a viewing to train on shares its video, its viewer or a run of samples with one of the splits `against`."""
    for name in against:
        split = find_split(name)
        runs = {key: each for each in load_split(name) for key in _run_keys(each)}
        for viewing in training:
            same = next((runs[key] for key in _run_keys(viewing) if key in runs), None)
            shared = [f"video {viewing.video}"] if viewing.video in split.videos else []
            shared += [f"viewer {viewing.user}"] if viewing.user in split.users else []
            shared += [f"{RUN} samples of viewer {same.user} on video {same.video}"] if same else []
            if shared:
                raise UserError(
                    f"the viewing of video {viewing.video} by viewer {viewing.user} is not for training: "
                    f"it shares {' and '.join(shared)} with {DATASET}/{name}, wanted viewings unknown to it"
                )


def _run_keys(viewing: HeadMovement) -> frozenset[int]:
    """A hash of each run of `RUN` samples; a head at rest is no evidence and doesn't count."""
    angles = np.ascontiguousarray(viewing.angles_deg)
    if len(angles) < RUN:
        return frozenset()
    moves = np.ptp(np.lib.stride_tricks.sliding_window_view(angles, RUN, axis=0), axis=-1).max(axis=-1) > 0  # (runs,)
    content, width = angles.tobytes(), angles.strides[0]
    return frozenset(hash(content[start * width : (start + RUN) * width]) for start in np.flatnonzero(moves).tolist())
