"""A run at one moment, drawn for a terminal of any size: curves, shares, times, what is left."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from potstill.headline import Headline
from potstill.training.durations import duration
from potstill.training.following import RunView

__all__ = ["dashboard", "network_name", "stale_after"]

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_BARS = 5  # rows for shares and for parts of a step
_AROUND = 11 + _BARS  # lines that are no curves: head, frames, bars, notes
_POINTS = 400  # of a curve: more than a terminal has columns
_SPREAD = 20.0  # losses further apart than so many times are drawn on a logarithmic axis
_FRAME = str.maketrans("┌┐└┘─│", "++++-|")


def dashboard(
    view: RunView, now: float, width: int = 80, height: int = 24, plain: bool = False, below: str = ""
) -> RenderableType:
    """A run and its parts, at most ``width`` columns and ``height`` lines (of 80 and 24 at least).

    Args:
        view: the folder's.
        now: seconds since 1970.
        width: columns to use.
        height: lines to use.
        plain: characters of ASCII only.
        below: the last line, where nothing is the matter with the run.
    """
    run = view.at_work()
    if not run.recipe:
        return _cut(Text(f"Not begun yet: {view.folder}"), plain)
    half = (width - 2) // 2
    lines = min(max(height - _AROUND, 3), 16)
    both = Table.grid(padding=(0, 2, 0, 0))
    both.add_column(width=half)
    both.add_column(width=half)
    both.add_row(_losses(run, half, lines, plain), _accuracies(view, run, half, lines, plain))
    both.add_row(
        _bars("share of the gradient", run.shares(), half, plain),
        _bars("a step's time", run.milliseconds(), half, plain, "ms"),
    )
    notes = [_evaluation(view, run), *_others(view, run)]
    stale = _stale(run, now)
    notes.append(Text(stale, style="bold yellow") if stale else Text(below, style="dim"))
    parts: list[RenderableType] = [_title(view, run), _numbers(run), _progress(run, width, plain), both]
    parts += [note for note in notes if note]
    return Group(*(_cut(part, plain) if isinstance(part, Text) else part for part in parts))


def _cut(text: Text, plain: bool) -> Text:
    """A line that stays a line; the dots that say so are no ASCII."""
    text.no_wrap, text.overflow = True, "crop" if plain else "ellipsis"
    return text


def stale_after(run: RunView) -> float:
    """After how many seconds without a word a run may be taken for stopped: five minutes, or ten times its usual pause.

    Example:
        >>> from pathlib import Path
        >>> stale_after(RunView(Path("run")))
        300.0
    """
    pace = run.steps[-1].get("steps_per_second") if run.steps else None
    every = (run.recipe.get("log") or {}).get("every") or 0
    return max(300.0, 10 * every / pace if pace else 0.0)


def _stale(run: RunView, now: float) -> str:
    silent = now - run.written
    if run.result is not None or silent < stale_after(run):
        return ""
    return f"Nothing new for {duration(silent)}; it may have been stopped. The same command goes on."


def _title(view: RunView, run: RunView) -> Text:
    state = "finished" if run.result is not None else "training"
    student, teacher = (network_name(run.recipe.get(part)) for part in ("student", "teacher"))
    what = f"{student} taught by {teacher}" if teacher else f"{student} without a teacher"
    return Text.assemble((_name(view, run), "bold"), f"  {what}  ", (state, "green" if state == "finished" else "cyan"))


def _name(view: RunView, run: RunView) -> str:
    """The run's folder by name, below the folder that is watched."""
    inner = run.folder.relative_to(view.folder)
    return "/".join([view.folder.resolve().name, *inner.parts])


def network_name(section: Mapping[str, Any] | None) -> str:
    """A network's name for people: its model, or the last part of where its weights come from."""
    if not section:
        return ""
    return str(section.get("model") or str(section.get("weights") or "").rstrip("/").rpartition("/")[2])


def _numbers(run: RunView) -> Text:
    epoch = run.epochs[-1]["epoch"] if run.epochs else 0
    steps = f"/{run.epoch_steps * run.epochs_wanted:,}" if run.epoch_steps else ""
    found = [f"epoch {min(epoch + 1, run.epochs_wanted)}/{run.epochs_wanted}", f"step {run.position:,}{steps}"]
    last = run.steps[-1] if run.steps else run.epochs[-1] if run.epochs else {}
    if last.get("lr") is not None:
        found.append(f"lr {last['lr']:.3g}")
    if run.images_per_second:
        found.append(f"{run.images_per_second:,.0f} images/s")
    left = run.seconds_left()
    if left is not None:
        found.append(f"about {duration(left)} left")
    elif run.result is not None:
        found.append(f"{duration(float(run.result.get('seconds') or 0))} of training")
    return Text("  ".join(found))


def _progress(run: RunView, width: int, plain: bool) -> Text:
    steps = (run.epoch_steps or 0) * run.epochs_wanted
    done = 1.0 if run.result is not None else min(run.position / steps, 1.0) if steps else 0.0
    full = round(done * width)
    mark = "#" if plain else "━"
    return Text.assemble((mark * full, "cyan"), (("-" if plain else "─") * (width - full), "dim"))


def _losses(run: RunView, width: int, height: int, plain: bool) -> RenderableType:
    terms = run.terms()
    terms = [term for term in terms if term != "total"] if len(terms) == 2 else terms  # one term is the total
    curves = {
        term: [(row["step"], row[term]) for row in run.steps if row.get(term) is not None]
        for term in terms[: len(_COLOURS)]
    }
    curves = {term: points for term, points in curves.items() if points}
    if not curves:
        return _empty("loss", "after the first logged steps", height)
    values = [value for points in curves.values() for _, value in points]
    log = min(values) > 0 and max(values) > _SPREAD * min(values)
    steps = (run.epoch_steps or 0) * run.epochs_wanted
    head = _legend("loss", {term: f"{points[-1][1]:.3g}" for term, points in curves.items()})
    return Group(_cut(head, plain), _curves(list(curves.values()), width, height, plain, x_max=steps, log=log))


def _accuracies(view: RunView, run: RunView, width: int, height: int, plain: bool) -> RenderableType:
    headline = run.headline
    named = f"{headline.short} {headline.unit}"
    keys = (headline.key, "val_total", "val_loss")
    key = next((key for key in keys if any(key in row for row in run.epochs)), None)
    if key is None:
        return _empty(named, "after the first evaluation", height)
    runs = {"student": run, **_beside(view, run)}
    curves = {
        name: [(row["epoch"], row[key]) for row in one.epochs if isinstance(row.get(key), float)]
        for name, one in runs.items()
    }
    taught = run.teacher_accuracy
    if key == headline.key and taught is not None:
        curves["teacher"] = [(0, taught), (max(run.epochs_wanted, 1), taught)]
    curves = {name: points for name, points in curves.items() if points}
    head = _legend(named if key == headline.key else key, dict.fromkeys(curves, ""))  # the values are in the last lines
    return Group(_cut(head, plain), _curves(list(curves.values()), width, height, plain, x_max=run.epochs_wanted))


def _beside(view: RunView, run: RunView) -> dict[str, RunView]:
    """The run's control, by which it is judged."""
    control = run.parts.get("control") or view.parts.get("control")
    return {"control": control} if control is not None and control is not run else {}


def _curves(
    curves: Sequence[Sequence[tuple[float, float]]], width: int, height: int, plain: bool, x_max: float = 0,
    log: bool = False,
) -> Text:  # fmt: skip
    from uniplot import plot_to_string

    thin = [points[:: -(-len(points) // _POINTS)] for points in curves]
    x_max = max(x_max, *(points[-1][0] for points in curves), 1)
    drawn = plot_to_string(
        xs=[[x for x, _ in points] for points in thin], ys=[[y for _, y in points] for points in thin],
        lines=True, width=width - 9, height=height, color=list(_COLOURS[: len(thin)]), y_as_log=log,
        character_set="ascii" if plain else "braille", x_min=0, x_max=x_max, x_gridlines=[], y_gridlines=[],
    )  # fmt: skip
    return Text.from_ansi(drawn.translate(_FRAME) if plain else drawn, no_wrap=True, overflow="crop")


def _legend(title: str, last: Mapping[str, str]) -> Text:
    """A curve's name in its colour, with its last value."""
    names = [
        (f"  {name} {value}".rstrip(), colour) for (name, value), colour in zip(last.items(), _COLOURS, strict=False)
    ]
    return Text.assemble((title, "bold"), *names)


def _empty(title: str, when: str, height: int) -> Text:
    return Text.assemble((title, "bold"), (f"  {when}", "dim"), "\n" * (height + 3))


def _bars(title: str, values: Mapping[str, float], width: int, plain: bool, unit: str = "") -> Text:
    """Parts of a whole, the largest first; what does not fit is one bar."""
    if not values:
        return Text.assemble((title, "bold"), ("  not measured", "dim"), "\n" * _BARS)
    parts = sorted(values.items(), key=lambda one: -one[1])
    if len(parts) > _BARS:
        parts = [*parts[: _BARS - 1], ("others", sum(value for _, value in parts[_BARS - 1 :]))]
    whole = sum(value for _, value in parts) or 1.0
    room = width - 10 - 17
    text = Text.assemble((f"{title}, {whole:.1f} {unit}" if unit else title, "bold"), no_wrap=True, overflow="crop")
    for name, value in parts:
        number = f"{value:6.1f} {unit}" if unit else ""
        filled = ("#" if plain else "█") * round(room * value / whole)
        text.append(f"\n{name[:9]:<9} ").append(f"{filled:<{room}}", "cyan").append(
            f"{100 * value / whole:4.0f} %{number}"
        )
    return text.append("\n" * (_BARS - len(parts)))


def _evaluation(view: RunView, run: RunView) -> Text:
    """The last evaluation, beside it the control's last one and its own of that epoch, and the teacher's."""
    row = run.evaluated()
    if row is None:
        return Text("Not evaluated yet.", style="dim")
    headline = run.headline
    first, *rest = _accuracies_of(row, headline)
    found = [f"after epoch {row['epoch']}: {first}"]
    for name, other in _beside(view, run).items():
        key = headline.key
        same = next((one[key] for one in other.epochs if one["epoch"] == row["epoch"] and key in one), None)
        last = (other.evaluated() or {}).get(key)
        if last is not None:
            there = "" if same is None or same == last else f" ({same:.2f} there)"
            found.append(f"{name} {last:.2f} {headline.unit}{there}")
    if run.teacher_accuracy is not None:
        found.append(f"teacher {run.teacher_accuracy:.2f} {headline.unit}")
    return Text("  ".join([*found, *rest]))


def _accuracies_of(row: Mapping[str, Any], headline: Headline) -> list[str]:
    keys = [headline.key, *headline.further([row])]
    shown = {key: f"{headline.name(key)} {{:.2f}} {headline.unit}" for key in keys}
    shown |= {"val_loss": "loss {:.4g}", "val_total": "total {:.4g}"}
    return [form.format(row[key]) for key, form in shown.items() if isinstance(row.get(key), float)]


def _others(view: RunView, run: RunView) -> list[Text]:
    """One line for the runs beside it: students side by side, the runs of a study."""
    shown_above = [run, *_beside(view, run).values()]
    others = [one for one in view.all_runs() if one.recipe and not any(one is known for known in shown_above)]
    known = [(one, one.headline, one.evaluated() or {}) for one in others]
    shown = [
        f"{_name(view, one)} {row[headline.key]:.2f} {headline.unit}"
        for one, headline, row in known
        if headline.key in row
    ]
    return [Text("beside: " + "  ".join(shown))] if shown else []
