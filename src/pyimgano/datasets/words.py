"""The words that people use for good and for defective parts, as labels and as names of folders.

One list for both, so that what is good in a manifest is good as a folder.
"""

from __future__ import annotations

import re
from typing import Literal

#: What the name of a folder may mean: 0 good, 1 defective, None a kind of defect; or that it can be
#: read in two ways, or that it looks as if good parts lay in it.
Meaning = Literal[0, 1, "unclear", "resembles good"] | None


def words(text: str) -> frozenset[str]:
    """Return the words of a text that are separated by blanks."""
    return frozenset(text.split())


# Without blanks, dashes, dots and underscores, in lower case.
_GOOD = words(
    "good goods ok okay io normal normals pass passed gut defectfree faultfree anomalyfree "
    "nodefect nodefects noanomaly nondefective notdefective nonanomalous notanomalous "
    "faultless flawless undamaged"
)
_DEFECTIVE = words(
    "bad anomaly anomalies anomalous abnormal defect defects defective ng ko nok nio fail failed "
    "reject rejected notgood nogood notok notokay notnormal notpassed faulty damaged"
)
# Zero may be the good class or the first kind of defect; "negative" may be the outcome of the test
# for defects or the verdict on the part.
_UNCLEAR = words("false true no yes negative negatives positive positives neg pos")
# Inside of a longer name these say that the folder may well hold good parts.
_GOOD_PARTS = words("good ok okay normal")


def meaning_of_word(word: str) -> Literal[0, 1] | None:
    """Return 0 for a word that means good, 1 for one that means defective, None for others.

    Case, blanks, dashes, dots and underscores do not matter: `iO`, `i.O.`, `Not OK`.
    """
    plain = _plain(word)
    return 0 if plain in _GOOD else 1 if plain in _DEFECTIVE else None


def meaning_of_label(label: str) -> Literal[0, 1] | None:
    """Return what a label in a table means: also 0 and 1 as numbers, and false and true.

    None for everything else, such as `yes` or -1, which mean a defect to one person and a good
    part to another.
    """
    text = label.strip()
    known = meaning_of_word(text)
    if known is not None:
        return known
    if text.lower() in ("false", "true"):
        return 1 if text.lower() == "true" else 0
    # as spreadsheets write numbers, some with a decimal comma
    number = re.fullmatch(r"\+?0*([01])(?:[.,]0*)?", text, re.ASCII)
    return None if number is None else 1 if number[1] == "1" else 0


def meaning_of_folder(name: str) -> Meaning:
    """Return what the name of a folder of test images says of them.

    "resembles good" is a name like `good_parts`, and "unclear" one like `0` or `negative`. Taking
    such a folder for a kind of defect could count every good image in it as a missed defect.
    """
    known = meaning_of_word(name)
    if known is not None:
        return known
    if _plain(name) in _UNCLEAR or meaning_of_label(name) == 0:
        return "unclear"
    parts = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    negated = {"no", "not", "non"} & set(parts)
    return "resembles good" if _GOOD_PARTS & set(parts) and not negated else None


def _plain(word: str) -> str:
    return re.sub(r"[\s._-]+", "", word.casefold())
