"""From the teacher to the student through networks of sizes in between (TAKD, DGKD)."""

from collections.abc import Iterator
from pathlib import Path

from potstill.config import NetworkConfig, ProcedureConfig, Recipe, StoreConfig
from potstill.errors import RecipeError

__all__ = ["chain"]


def chain(recipe: Recipe, folder: Path) -> Iterator[tuple[str, Recipe]]:
    """The recipes of an assistant chain with their titles, the student's last; others come alone.

    Each network learns from the one before it, the first from the teacher (TAKD). With ``procedure.dense`` each learns
    from all before it (DGKD): the one before it is its teacher, the others are ``teacher.others``. Data, objective and
    schedule are the same for all.

    Args:
        recipe: resolved.
        folder: the run's; assistants go to ``assistant-1`` and so on in it.

    Raises:
        RecipeError: for a chain without assistants or without a teacher, or a dense one from a teacher that is no run.

    Source: Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020 (arXiv 1902.03393); Son
    et al., "Densely Guided Knowledge Distillation using Multiple Teacher Assistants", ICCV 2021.
    """
    procedure, teacher = recipe.procedure, recipe.teacher
    if procedure.name != "assistants":
        yield "student", recipe
        return
    if not procedure.assistants or teacher is None:
        raise RecipeError(
            "procedure.name=assistants leads from a teacher to the student through other networks: give a teacher and "
            "procedure.assistants=[MODEL, ...], from the larger to the smaller."
        )
    if procedure.dense and (teacher.weights is None or not Path(teacher.weights).is_dir()):
        raise RecipeError(
            "procedure.dense=true has every network learn from the teacher too, by its run's folder; got "
            f"teacher.weights={teacher.weights}. Give the folder of the run that trained it."
        )
    if procedure.dense and "dgkd" not in recipe.objective:
        raise RecipeError(
            "procedure.dense=true has every network learn from all before it, which takes dgkd in the objective: "
            "objective={ce: 0.5, dgkd: 0.5}."
        )
    others: list[str] = [*teacher.others]
    store = recipe.store
    for number, model in enumerate([*procedure.assistants, None], start=1):
        if model is None:
            yield "student", recipe.model_copy(update={"teacher": teacher, "store": store})
            return
        path = str(folder / f"assistant-{number}")
        part = {
            "student": NetworkConfig(model=model), "teacher": teacher, "run": path, "control": False,
            "procedure": ProcedureConfig(), "store": store,
        }  # fmt: skip
        yield f"assistant {number}", recipe.model_copy(update=part)
        store = StoreConfig()  # it is the first teacher's
        if procedure.dense:
            others = [*others, str(teacher.weights)]
        teacher = type(teacher)(
            weights=path, others=tuple(others), precision=teacher.precision, class_means=teacher.class_means
        )
