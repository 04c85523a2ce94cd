"""What the card of an adapter for viewport prediction says beyond the frame."""

from typing import Any

from netllm.cards.frame import Card


def _about(facts: dict[str, Any]) -> str:
    return (
        "It predicts where a viewer of 360-degree video will look, from the last seconds of head\nmovement, by absolute error around the "
        "circle. It knows where the viewers of Jin2022 have their front, and does without on other\nvideos."
    )


def _training(trained: dict[str, Any]) -> dict[str, str]:
    return {
        "data": _data(trained["data"]),
        "added to": str(trained["base"]),
        "length": f"{trained['steps']} steps of {trained['optimiser']['batch']} stretches, half mirrored, {trained['minutes']} min",
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


def _validation(validation: dict[str, Any]) -> list[str]:
    return [f"Mean absolute error on {validation['windows']} validation windows, 2 s to 4 s: {validation['mae_deg']:.3f} degrees."]


CARD = Card(
    about=_about,
    training=_training,
    validation=_validation,
    curve={"step": "step", "training_mae_deg": "training MAE", "valid_mae_deg": "validation MAE"},
    unmeasured="Not measured on test viewings yet.",
)
