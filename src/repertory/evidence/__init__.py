"""Arms, statistics and the report: how an effect is shown, with its interval over seeds."""

from repertory.evidence.experiment import Arm, ArmResult, Context, Experiment, PublishedDifference, Scale

__all__ = ["Arm", "ArmResult", "Context", "Experiment", "PublishedDifference", "Scale"]
