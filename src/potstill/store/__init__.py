"""A frozen teacher's outputs on disk, found by (index, view), with a key that says what they were made from."""

from potstill.store.fields import Layout
from potstill.store.key import StoreKey, differences, shortfalls
from potstill.store.resident import Resident
from potstill.store.size import StoreSize, store_size
from potstill.store.store import Store
from potstill.store.verify import Report, mend, verify

__all__ = [
    "Layout",
    "Report",
    "Resident",
    "Store",
    "StoreKey",
    "StoreSize",
    "differences",
    "mend",
    "shortfalls",
    "store_size",
    "verify",
]
