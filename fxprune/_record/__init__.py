"""The record of a small model: how it was made, and how the model keeps it."""

from fxprune._record.history import Record
from fxprune._record.holder import MadeBy, attach, change_record, joined_in_place, record, steps_in
from fxprune._record.since import another_model, record_since
from fxprune._record.weight_sum import checksum

__all__ = [
    "MadeBy",
    "Record",
    "another_model",
    "attach",
    "change_record",
    "checksum",
    "joined_in_place",
    "record",
    "record_since",
    "steps_in",
]
