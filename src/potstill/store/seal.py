"""A record's last four bytes: a sum that says that these bytes are this row of this store."""

import zlib

import numpy as np

from potstill.store.fields import CHECK_BYTES

__all__ = ["seal", "sound"]


def seal(payload: np.ndarray, rows: np.ndarray, salt: int) -> np.ndarray:
    """Records ``(B, P + 4)`` uint8: each payload and its CRC-32.

    The sum is begun from ``salt + row`` (modulo 2^32), so that a whole row in another's place is found as well as a
    flipped bit, and a row of another store as well as that.

    Args:
        payload: ``(B, P)`` uint8.
        rows: ``(B,)`` integers, the rows' numbers.
        salt: a number made from the store's key.

    Example:
        >>> payload = np.zeros((2, 8), np.uint8)
        >>> records = seal(payload, np.array([5, 6]), salt=1)
        >>> sound(records, np.array([5, 6]), salt=1), sound(records, np.array([6, 5]), salt=1)
        (array([ True,  True]), array([False, False]))
    """
    sums = np.array(checks(payload, rows, salt), dtype=np.uint32)
    return np.concatenate((payload, sums[:, None].view(np.uint8)), axis=1)


def sound(records: np.ndarray, rows: np.ndarray, salt: int) -> np.ndarray:
    """``(B,)`` bool: which records ``(B, P + 4)`` uint8 are whole and those of these rows."""
    stored = np.ascontiguousarray(records[:, -CHECK_BYTES:]).view(np.uint32)[:, 0]
    return stored == np.array(checks(records[:, :-CHECK_BYTES], rows, salt), dtype=np.uint32)


def checks(payload: np.ndarray, rows: np.ndarray, salt: int) -> list[int]:
    starts = ((rows + salt) % (1 << 32)).tolist()
    return [zlib.crc32(row, start) for row, start in zip(payload, starts, strict=True)]
