"""An analysis or a record as plain data, and views of it: text, Markdown, JSON, graphs."""

from fxprune.report.data import SCHEMA, AnalysisData, RecordData, analysis_data, record_data
from fxprune.report.graphs import KINDS, dot, graph
from fxprune.report.views import FORMATS, view

__all__ = [
    "FORMATS",
    "KINDS",
    "SCHEMA",
    "AnalysisData",
    "RecordData",
    "analysis_data",
    "dot",
    "graph",
    "record_data",
    "view",
]
