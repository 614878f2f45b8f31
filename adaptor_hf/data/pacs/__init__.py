"""From a PACS export and a table of reports to a table of pairs: headers, rules, join, counts."""

from .index import DicomIndex, index_dicom

__all__ = ["DicomIndex", "index_dicom"]
