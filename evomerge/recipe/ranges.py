"""Which values a parameter can have, and what is said of the others."""

from __future__ import annotations

from evomerge.recipe.methods import MethodSpec


def value_problem(name: str, value: float) -> str | None:
    """What is wrong with one value of a parameter, or None.

    mergekit 0.1.5 makes a density <= 0 a task vector of zeros and one > 1 a full one, and reads
    select_topk and gamma alike. None of these is ever meant, so all are refused.
    """
    if name == "density" and not 0 < value <= 1:
        hint = "1 keeps everything" if value > 1 else "to leave a model out, give it weight 0"
        return f"density {value!r} is refused: the share kept lies in (0, 1]; {hint}"
    if name == "epsilon" and value < 0:
        return f"epsilon {value!r} is refused: it is at least 0"
    if name == "gamma" and not 0 <= value < 1:
        return f"gamma {value!r} is refused: the share removed as outliers lies in [0, 1)"
    if name == "trim" and not 0 < value <= 1:
        return f"trim {value!r} is refused: the share kept lies in (0, 1]; 1 trims nothing"
    if name == "select_topk" and not 0 < value <= 1:
        return f"select_topk {value!r} is refused: the share merged lies in (0, 1]; 1 merges all"
    return None


def density_problem(spec: MethodSpec, density: float, epsilon: float) -> str | None:
    """What is wrong with a model's density and epsilon together, or None."""
    if not spec.sparsifies:
        return None
    problem = value_problem("density", density)
    if problem or spec.sparsifier != "magprune" or density == 1:
        return problem
    if epsilon < 0 or density - epsilon <= 0 or density + epsilon >= 1:
        return (
            f"density {density!r} with epsilon {epsilon!r} is refused: {spec.name} keeps elements "
            f"with probabilities from density - epsilon = {density - epsilon:.6g} to density + "
            f"epsilon = {density + epsilon:.6g}, which must lie inside (0, 1); "
            f"epsilon >= 0 and < {min(density, 1 - density):.6g} is allowed here"
        )
    return None
