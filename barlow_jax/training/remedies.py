"""What is said of a step that was not finite, once its first operation is known: what happened, and what to do."""

from typing import Any

import numpy as np

from barlow_jax.training.first_fault import Fault

LARGE = 1e15  # whose square is near the end of float32; nothing that learns comes near
HALF = 65504.0  # the largest float16
DIVIDE = ("div", "rsqrt", "log", "integer_pow", "pow", "sqrt")
SHOWN = 3  # images


def told(fault: Fault | None, case: dict[str, Any], names: list[str], config: Any) -> list[str]:
    """Lines for a person.

    Args:
      fault: of `first_fault`, or None where the step came out finite.
      case: of `evidence.read`; names: what each row's image is called; config: of the run.
    """
    step, later = case["step"], max(0, case["state_of_step"] - case["step"])
    if fault is None:
        return [f"Step {step} is finite now, operation by operation; {_why_finite(later, config)}."]
    lines = []
    if not fault.operation:
        lines += [
            f"Step {step} could not be finite: {fault.after} is not before it begins ({fault.gave}).",
            "What to do: the update of a step before made it so: lower config.optimizer.learning_rate_weights, or "
            "lengthen config.warmup_epochs, and go on from an earlier checkpoint.",
        ]
        return lines
    where = f" in {fault.lines[0]}" if fault.lines else ""
    behind = f", behind {fault.after}" if fault.after else ""
    way = "backward" if fault.backward else "forward"
    lines += [f"Step {step}: the first operation that is not finite is {fault.operation}{where}, {way}{behind}."]
    lines += [f"  called from {line}" for line in fault.lines[1:]]
    lines += [f"  given {numbers}" for numbers in fault.given]
    lines += [f"  gave  {fault.gave}"]
    if fault.rows:
        shown = ", ".join(names[row] for row in fault.rows[:SHOWN])
        more = f" and {len(fault.rows) - SHOWN} more" if len(fault.rows) > SHOWN else ""
        lines += [f"  in {len(fault.rows)} of {len(names)} images: {shown}{more}"]
    if later:
        lines += [f"  (with the parameters of step {case['state_of_step']}, {later} later: the step was passed over)"]
    return [*lines, f"What to do: {remedy(fault, len(names))}."]


def remedy(fault: Fault, batch_size: int) -> str:
    """What to do about a fault inside a step."""
    largest = max((abs(value) for numbers in fault.given for value in (numbers.low, numbers.high)), default=np.nan)
    rate = "lower config.optimizer.learning_rate_weights or lengthen config.warmup_epochs"
    if any(numbers.dtype == "float16" for numbers in (*fault.given, fault.gave)):
        return f"float16 ends at {HALF:.0f}, set config.precision=bfloat16 or float32, or {rate}"
    if largest > LARGE:
        return f"numbers of {largest:.0e} have grown over many steps, {rate} and go on from an earlier checkpoint"
    if fault.rows and len(fault.rows) < batch_size / 2:
        return "look at these images; delete those that are broken or blank"
    if fault.operation in DIVIDE:
        return (
            "something is 0 or negative that must not be, as a dimension that is the same for all images of the batch: "
            f"{rate}, or take a larger config.batch_size"
        )
    return f"{rate}, or set config.precision=float32"


def _why_finite(later, config):
    if later:
        return (
            f"it was passed over, and the parameters here are {later} steps younger, so it was they and not the "
            "images: lower config.optimizer.learning_rate_weights"
        )
    if config.precision != "float32":
        return f"the compiled step rounds {config.precision} elsewhere: set config.precision=float32"
    return (
        "the devices that it ran on round otherwise, or computed wrongly: replay it there, and see `barlow-jax doctor`"
    )
