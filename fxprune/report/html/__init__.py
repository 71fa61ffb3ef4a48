"""The report as one page for a browser: `content.py` has its data, `page.py` puts it into one file with `assets/`."""

from fxprune.report.html.content import Curves
from fxprune.report.html.page import analysis_page, record_page

__all__ = ["Curves", "analysis_page", "record_page"]
