"""The record of a small model: how it was made, and how the model keeps it."""

from fxprune._record.history import Record
from fxprune._record.holder import attach, record, record_since, records
from fxprune._record.weight_sum import checksum

__all__ = ["Record", "attach", "checksum", "record", "record_since", "records"]
