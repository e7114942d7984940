"""Advantages, the five choices of a method, and the optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unigrpo.settings.base import Choice, Settings

Beta = Annotated[float, Field(ge=0, lt=1)]
"""What AdamW keeps of a mean of gradients from one step to the next."""


class AdvantageChoice(Choice):
    """How the rewards of a group become advantages; the paper's eq. 15 is the z-score."""

    folder = "unigrpo.methods.advantages"
    use: str = "zscore"
    aggregate: Literal["sum_then_normalize", "normalize_then_sum"] = Field("sum_then_normalize", description="Weighted sum first (the paper), or each reward normalised within its group first.")
    std_floor: float = Field(1e-6, ge=0, lt=1, description="Groups whose standard deviation is below this share of their largest reward get advantage 0: they differ by rounding (float32 keeps seven digits). Relative, so that the scale of a reward does not matter.")
    whiten: bool = Field(False, description="Divide the advantages of a step by their standard deviation, as GDPO does after normalize_then_sum.")
    shuffle_within_groups: bool = Field(False, description="A control: advantages permuted inside each group, so that nothing can be learnt.")


class EstimatorChoice(Choice):
    """Which positions are noised and scored at each inner update."""

    folder = "unigrpo.methods.estimators"
    use: str = "unigrpo"


class RatioChoice(Choice):
    """How far the policy has moved from the one that generated, at each token."""

    folder = "unigrpo.methods.ratios"
    use: str = "token"


class ObjectiveChoice(Choice):
    """What a token's ratio and advantage are worth."""

    folder = "unigrpo.methods.objectives"
    use: str = "clipped"


class KlChoice(Choice):
    """The penalty on the distance from the reference, or from the policy that generated."""

    folder = "unigrpo.methods.kl"
    use: str = "k3"
    coef: float = Field(0.02, ge=0, le=1e6, description="The paper's beta; 0 skips the reference passes.")
    to: Literal["reference", "old"] = Field("reference", description="old: the policy before the step's first update; it needs no reference.")

    @property
    def needs_reference(self) -> bool:
        """Return whether the reference is asked for its log-probs."""
        return self.coef > 0 and self.to == "reference"


class LearnerSettings(Settings):
    """The optimiser (AdamW) and the inner updates."""

    lr: float = Field(gt=0, le=10)
    num_inner_updates: int = Field(2, ge=1, le=10_000, description="The paper's mu.")
    micro_batch_rows: int = Field(64, ge=1, le=1_000_000, description="Rows that go through the model together.")
    warmup_steps: int = Field(0, ge=0, le=10_000_000, description="Learner steps over which the rate rises.")
    lr_schedule: Literal["constant", "cosine"] = Field("cosine", description="cosine falls to 0 at num_steps, as in the paper.")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0, le=1e3)
    max_grad_norm: float = Field(1.0, gt=0, le=1e12)
    logprob_chunk: int = Field(1024, ge=1, le=100_000_000, description="Scored positions that go through the head together.")
    max_skipped_updates: int = Field(10, ge=0, le=10_000_000, description="Updates of the last 100 (or of ten times this number, if that is more) that may be skipped for a gradient that is not finite; one more stops the run.")
