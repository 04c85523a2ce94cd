"""The command line of `scripts/train`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from controllers.learning.start import exit_code
from testbed.errors import UserError, suggestion


def _pensieve(arguments: Sequence[str]) -> Path:
    from controllers.learning.pensieve import PensieveDesign, PensieveWorld
    from controllers.learning.run import Run, TrainSettings

    settings = tyro.cli(TrainSettings, prog="scripts/train pensieve", args=arguments)
    return Run(PensieveDesign(), PensieveWorld(settings.seed), settings).train()


def _genet(arguments: Sequence[str]) -> Path:
    from controllers.learning.genet import OPTIMISATION, GenetDesign, GenetWorld
    from controllers.learning.run import Run, TrainSettings

    settings = tyro.cli(TrainSettings, prog="scripts/train genet", args=arguments, default=TrainSettings(ppo=OPTIMISATION))
    return Run(GenetDesign(), GenetWorld(settings.seed, settings.ppo.iterations), settings).train()


def _decima(arguments: Sequence[str]) -> Path:
    from controllers.learning.decima_ppo import DecimaRun, DecimaSettings

    return DecimaRun(tyro.cli(DecimaSettings, prog="scripts/train decima", args=arguments)).train()


def _vp_linear_l1(arguments: Sequence[str]) -> Path:
    from controllers.learning.vp_linear import LinearSettings, train

    return train(tyro.cli(LinearSettings, prog="scripts/train vp_linear_l1", args=arguments))


def _vp_mlp(arguments: Sequence[str]) -> Path:
    from controllers.learning.vp_mlp import MlpRun, MlpSettings

    return MlpRun(tyro.cli(MlpSettings, prog="scripts/train vp_mlp", args=arguments)).train()


def _vp_track(arguments: Sequence[str]) -> Path:
    from controllers.learning.vp_track import TrackRun, TrackSettings

    return TrackRun(tyro.cli(TrackSettings, prog="scripts/train vp_track", args=arguments)).train()


BASELINES: dict[str, Callable[[Sequence[str]], Path]] = {
    "decima": _decima,
    "genet": _genet,
    "pensieve": _pensieve,
    "vp_linear_l1": _vp_linear_l1,
    "vp_mlp": _vp_mlp,
    "vp_track": _vp_track,
}
WITHOUT_CHECKPOINTS = ("vp_linear_l1",)
"""A fit of minutes; these take no --resume."""


def train_command(arguments: Sequence[str]) -> int:
    """Train; the codes of `controllers.learning.start.exit_code`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: scripts/train {{{','.join(BASELINES)}}} [options]   (scripts/train NAME --help tells them)")  # noqa: T201
        return 0
    interrupted = "--resume goes on from the last checkpoint"
    if arguments[0] in WITHOUT_CHECKPOINTS:
        interrupted = f"{arguments[0]} keeps no checkpoints: it begins anew, in an empty folder"
    return exit_code(lambda: _train(arguments), interrupted)


def _train(arguments: Sequence[str]) -> None:
    if arguments[0] not in BASELINES:
        raise UserError(f"scripts/train: baseline {arguments[0]!r} is unknown: {suggestion(arguments[0], tuple(BASELINES))}")
    print(BASELINES[arguments[0]](arguments[1:]))  # noqa: T201
