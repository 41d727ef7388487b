"""The report page: one HTML file that stands alone, made of run folders. Pure text from JSON values; nothing here computes."""

from spikeprop.report.document import document

__all__ = ["document"]
