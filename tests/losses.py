"""The loss of the paper, as the tests of the learner take it."""

from typing import Any

from unigrpo.methods.loss import Loss, make_loss
from unigrpo.settings.learning import KlChoice, ObjectiveChoice, RatioChoice


def clipped_loss(**kl: Any) -> Loss:
    """A ratio a token, clipped at 0.2, with the KL that the settings give."""
    return make_loss(RatioChoice(), ObjectiveChoice(clip_eps=0.2), KlChoice(**kl))
