"""A study's own file, ``study.json``: its table and how to make it again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from potstill.errors import RunError
from potstill.files import write_whole
from potstill.plain_json import to_json
from potstill.procedures.identity import versions
from potstill.study.table import Table

__all__ = ["STUDY_FILE", "Record", "read_record", "write_record"]

STUDY_FILE = "study.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What a study came to.

    Attributes:
        table: of its runs.
        file: the study file that it was made of, as plain values.
        command: that made it.
        versions: of what it was made with.
    """

    table: Table
    file: dict[str, Any]
    command: str
    versions: dict[str, str]


_RECORD = TypeAdapter(Record)


def write_record(folder: Path, table: Table, file: dict[str, Any], command: str) -> Record:
    """Write ``study.json`` whole.

    Args:
        folder: the study's, which is there.
        table: as it is now.
        file: the study file as plain values.
        command: that makes it again.

    Raises:
        RunError: it cannot be written.
    """
    record = Record(table, file, command, versions())
    write_whole(folder / STUDY_FILE, to_json(_RECORD.dump_python(record, mode="json"), indent=2) + "\n")
    return record


def read_record(folder: Path) -> Record:
    """What :func:`write_record` wrote.

    Raises:
        RunError: where there is none, or it is damaged.
    """
    path = folder / STUDY_FILE
    try:
        return _RECORD.validate_python(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise RunError(
            f"{folder} holds no {STUDY_FILE}: it is no study's folder, or the study has not begun."
        ) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(
            f"{path} is damaged: {where}: {first['msg'][0].lower() + first['msg'][1:]}. The same `potstill study` "
            "command writes it again."
        ) from None
    except ValueError as error:
        raise RunError(
            f"{path} is damaged: it is no valid JSON ({error}). The same `potstill study` command writes it again."
        ) from None
