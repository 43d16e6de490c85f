"""Files as sources: `lines` gives the lines of a text file."""

from headrace.files.lines import lines

__all__ = ["lines"]
