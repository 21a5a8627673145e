"""A recipe's data opened, and its data section with everything said."""

from potstill.config import DataConfig, Recipe
from potstill.data.faces import open_faces
from potstill.data.groups import choose_order
from potstill.data.open import open_data
from potstill.data.source import Source, Split, Subset
from potstill.errors import DataError, RecipeError
from potstill.procedures.scenes import SCENE_TASKS, open_scene_split, resolve_scenes
from potstill.section import unread

__all__ = ["MIXED_SIZES", "NO_STORE", "open_split", "resolve_data"]

MIXED_SIZES = 224
"""The side for images of many sizes, as the ImageNet literature has it."""

NO_STORE = (
    "task=detection and task=segmentation work with a live teacher only: what it says depends on the regions that the "
    "student draws, and its maps take far more space than the images. Leave teacher.store out."
)

# What only some tasks read of the data section; scenes.py has what scenes do not.
_READ_BY = {
    **dict.fromkeys(("judged", "sizes", "longest"), SCENE_TASKS),
    **dict.fromkeys(("protocol", "far"), ("faces",)),
    **dict.fromkeys(("image_column", "label_column"), ("classification",)),
}
_FACE = 112  # the side of faces, as insightface cuts them
_RESIDENT_LIMIT = 2 * 1024**3  # bytes that loader=auto lets the resident loader take; set by hand there is no limit
_PIXEL_BYTES = 7  # while it loads: three channels as decoded, and four packed


def open_split(recipe: Recipe) -> Split:
    """The training and validation sources that a recipe names."""
    config = recipe.data
    if recipe.task in SCENE_TASKS:
        return open_scene_split(config, recipe.task)
    if recipe.task == "faces":
        return open_face_split(config)
    return open_data(
        config.source,
        config.path,
        val_fraction=config.val_fraction,
        seed=config.split_seed,
        image_column=config.image_column,
        label_column=config.label_column,
        size=config.size,
    )


def open_face_split(config: DataConfig) -> Split:
    """People to learn from, and what networks are judged by; see :func:`~potstill.data.faces.open_faces`."""
    if config.path is None:
        raise DataError("task=faces needs data.path: a folder with one sub-folder a person, or records (train.rec).")
    return open_faces(
        config.path, config.protocol, source=config.source, val_fraction=config.val_fraction, seed=config.split_seed
    )


def resolve_data(recipe: Recipe, source: Source) -> DataConfig:
    """A recipe's data section with every "auto" and none replaced by what this source makes of it.

    Raises:
        DataError: names every value that nothing would read, or a crop that the loader cannot make.
    """
    config = recipe.data
    if recipe.task in SCENE_TASKS:
        if recipe.teacher is not None and recipe.teacher.store is not None:
            raise RecipeError(NO_STORE)
        return resolve_scenes(config, source, recipe.task)
    if recipe.task == "faces":
        config = config.model_copy(update={"size": config.size or _FACE})
    small = source.fixed_size is not None and max(source.fixed_size) <= 64
    size = config.size or (max(source.fixed_size) if small and source.fixed_size else MIXED_SIZES)
    fits = len(source) * size * size * _PIXEL_BYTES <= _RESIDENT_LIMIT
    held = fits and (small or recipe.task == "faces")
    loader = config.loader if config.loader != "auto" else ("resident" if held else "streaming")
    usual = "none" if recipe.task == "faces" else "pad" if small else "resized"
    crop = config.crop if config.crop != "auto" else usual
    resolved = config.model_copy(
        update={
            "size": size,
            "crop": crop,
            "flip": config.flip if config.flip is not None else source.mirrors,
            "loader": loader,
            "order": _order(config, source) if loader == "streaming" else config.order,
            "mean": config.mean or source.statistics.mean,
            "std": config.std or source.statistics.std,
        }
    )
    problems = unread("data", resolved) + _of_other_tasks(recipe)
    if recipe.task == "faces" and loader == "streaming" and crop == "none" and source.fixed_size != (size, size):
        problems.append(
            f"task=faces with data.loader=streaming needs images of {size} x {size}; cut them to that size, or use "
            "data.loader=resident, which resizes them once."
        )
    if loader == "streaming" and crop == "pad" and source.fixed_size != (size, size):
        problems.append(
            f"data.crop=pad needs images of one size, {size} x {size}; {source.name} holds "
            f"{'images of ' + str(source.fixed_size) if source.fixed_size else 'images of many sizes'}. "
            "Use data.crop=resized, or data.loader=resident, which resizes them once."
        )
    if config.split_seed != DataConfig().split_seed and not isinstance(source, Subset):
        problems.append(
            f"data.split_seed={config.split_seed} does nothing: {source.name} is used whole, so there is no split to "
            "choose. Leave it out."
        )
    if problems:
        raise DataError(" ".join(problems))
    return resolved


def _of_other_tasks(recipe: Recipe) -> list[str]:
    """A sentence for each value of the data section that only other tasks read."""
    own, found = DataConfig(), []
    for name, tasks in _READ_BY.items():
        value = getattr(recipe.data, name)
        if value != getattr(own, name) and recipe.task not in tasks:
            known = " and ".join(f"task={task}" for task in tasks)
            found.append(f"data.{name}={value} does nothing with task={recipe.task}, only with {known}. Leave it out.")
    return found


def _order(config: DataConfig, source: Source) -> str:
    return "full" if choose_order(source, config.order) is None else "groups"
