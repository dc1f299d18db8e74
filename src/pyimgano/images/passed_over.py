"""Names of files and folders that no walk through folders looks at.

Network storage and operating systems leave folders of their own among a user's files: thumbnails,
waste bins, snapshots. What lies in them has the suffixes of images and must be neither learned from
nor scored. They are passed over like hidden files, wherever folders are walked.
"""

from __future__ import annotations

#: In lower case. Files whose suffix is not one of an image are named here as well, so that they
#: are not reported as files that could not be used.
_SYSTEM_NAMES = frozenset(
    {
        # Synology
        "@eadir",
        "@tmp",
        "@sharebin",
        "#recycle",
        "#snapshot",
        # QNAP
        "@recycle",
        "@recently-snapshot",
        "@__thumb",
        # NetApp
        "~snapshot",
        # Windows
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "found.000",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        # macOS, and archives that were packed there
        "__macosx",
        "network trash folder",
        "temporary items",
        "icon\r",
        # Linux
        "lost+found",
    }
)


def is_passed_over(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or belongs to the system."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES
