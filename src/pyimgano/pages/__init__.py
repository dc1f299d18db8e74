"""Pages to look at: one HTML file each, complete in itself, that opens without a network.

`report_page` makes report.html of a run directory, `new_images` the page of `pyimgano infer`.
"""

from .new_images import NewImagesPage
from .page_facts import PageFacts
from .report_page import REPORT_PAGE, write_report_page

__all__ = ["REPORT_PAGE", "NewImagesPage", "PageFacts", "write_report_page"]
