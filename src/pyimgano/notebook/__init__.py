"""What a notebook shows of a detector, a dataset, a result or a report, and figures of them.

Knows none of them: their methods hand over plain values. matplotlib and pandas are imported when
something wants them.
"""

from .figures import new_figure, show_image, show_scores, show_square
from .frames import to_frame
from .html import pictures, table, thumbnail

__all__ = [
    "new_figure",
    "pictures",
    "show_image",
    "show_scores",
    "show_square",
    "table",
    "thumbnail",
    "to_frame",
]
