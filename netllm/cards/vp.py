"""What the card of an adapter for viewport prediction says beyond the frame."""

from typing import Any

from controllers.learning.vp_data import HISTORY_S, VALID_HORIZON_S
from netllm.cards.frame import Card
from traces.viewport_splits import DATASET
from traces.viewports import RATE_HZ


def _about(facts: dict[str, Any]) -> str:
    seen = " and the frames at the newest samples" if facts["settings"]["image_features"] else ""
    return (
        f"It predicts where a viewer of 360-degree video will look, from the last seconds of head\nmovement{seen}, by absolute error "
        f"around the circle.{_front(facts)}"
    )


def _front(facts: dict[str, Any]) -> str:
    """Whether the model, or what it adds to, is told where viewers have their front, and has learnt to do without."""
    settings, trained = facts["settings"], facts["trained"]
    if not settings["heading"] and settings["base"] == "last":
        return " It is not told where viewers have their front."
    who = "viewers of Jin2022" if trained["data"]["data"] == DATASET else "viewers it was trained on"
    without = (
        "and does without on other\nvideos" if trained.get("no_front") or not settings["heading"] else "and never learnt to do without"
    )
    return f" It knows where the {who} have their front, {without}."


def _training(facts: dict[str, Any]) -> dict[str, str]:
    trained = facts["trained"]
    mirrored = "none" if facts["settings"]["image_features"] else "half"  # frames are not mirrored
    return {
        "data": _data(trained["data"]),
        "added to": str(trained["base"]),
        "length": f"{trained['steps']} steps of {trained['optimiser']['batch']} stretches, {mirrored} mirrored, {trained['minutes']} min",
        "weights": f"exponential mean, factor {trained['averaged']} a step",
    }


def _data(data: dict[str, Any]) -> str:
    if "train" not in data:
        return str(data["data"])
    train, valid = data["train"], data["valid"]
    return (
        f"{data['data']}, sha256 `{data['sha256'][:16]}`: {train['windows']} windows of {len(train['users'])} viewers on "
        f"{len(train['videos'])} videos; validation on {valid['windows']} windows of {len(valid['users'])} other viewers on "
        f"{len(valid['videos'])} other videos"
    )


def _validation(facts: dict[str, Any]) -> list[str]:
    validation, horizon_s = facts["validation"], min(facts["settings"]["horizon"] / RATE_HZ, VALID_HORIZON_S)
    windows = f"{validation['windows']} validation windows, {HISTORY_S:g} s to {horizon_s:g} s"
    return [f"Mean absolute error on {windows}: {validation['mae_deg']:.3f} degrees."]


CARD = Card(
    about=_about,
    training=_training,
    validation=_validation,
    curve={"step": "step", "training_mae_deg": "training MAE", "valid_mae_deg": "validation MAE"},
    unmeasured="Not measured on test viewings yet.",
)
