"""The report page: one self-contained HTML file made from run folders. ``evidence`` collects what a run does not report."""

from spikeprop.report.document import document

__all__ = ["document"]
