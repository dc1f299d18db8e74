"""The words that people use for good and for defective parts, as labels and as names of folders.

One list for both, so that what is good in a manifest is good as a folder.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

#: What the name of a folder may mean: 0 good, 1 defective, None a kind of defect; or that it can be
#: read in two ways, or that it looks as if good parts lay in it.
Meaning = Literal[0, 1, "unclear", "resembles good"] | None
#: What the name of a folder says of the use of what lies in it.
Role = Literal["train", "validation", "test", "masks"] | None


def words(text: str) -> frozenset[str]:
    """Return the words of a text that are separated by blanks."""
    return frozenset(text.split())


def _plain(word: str) -> str:
    """Return a word in lower case without accents, blanks, dashes, dots and underscores.

    Some systems store an umlaut as two characters and others as one: both become the same.
    """
    bare = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
    return re.sub(r"[\s._-]+", "", bare.casefold())


def _plain_words(text: str) -> frozenset[str]:
    return frozenset(map(_plain, text.split()))


_GOOD = _plain_words(
    "good goods ok okay io normal normals pass passed defectfree faultfree anomalyfree "
    "nodefect nodefects noanomaly nondefective notdefective nonanomalous notanomalous "
    "faultless flawless undamaged accepted conforming "
    "gut gutteil gutteile fehlerfrei inordnung "  # German
    "bon bons bonne bonnes conforme conformes sansdefaut "  # French, Spanish and Portuguese too
    "bueno buenos buena buenas correcto correctos sindefecto sindefectos aprobado aprobados "
    "bom boa bons boas aprovado aprovados semdefeito semdefeitos "
    "buono buoni buona buone conformi senzadifetti "  # Italian
    "goed goedgekeurd dobry dobre dobra bezwad dobrej bezvad vyhovuje "  # Dutch, Polish, Czech
    "godkand godkant godkendt hyva saglam iyi "  # Swedish, Danish, Finnish, Turkish
    "годные годный годен хорошие норма "
    "良品 良 合格 合格品 正常 正常品 양품 정상 합격"
)
_DEFECTIVE = _plain_words(
    "bad anomaly anomalies anomalous abnormal def defect defects defective ng ko nok nio fail "
    "failed reject rejected rejects notgood nogood notok notokay notnormal notpassed faulty "
    "fault faults damaged nonconforming scrap "
    "schlecht schlechtteil schlechtteile fehler fehlerhaft fehlerteile defekt defekte ausschuss "
    "nichtok nichtio nichtgut nichtinordnung "
    "mauvais mauvaise defaut defauts defectueux rebut rebuts nonconforme nonconformes anomalie "
    "malo malos mala malas defecto defectos defectuoso defectuosos rechazo rechazado rechazados "
    "noconforme noconformes rechazos anomalia anomalias "
    "ruim ruins defeito defeitos defeituoso reprovado reprovados naoconforme "
    "difetto difetti difettoso difettosi scarto scarti nonconformi "
    "fout fouten afgekeurd afkeur zly zle wada wady wadliwy wadliwe vada vady vadne vadny "
    "fel felaktig underkand fejl viallinen hatali hata kusurlu kusur "
    "брак дефект дефекты дефектные "
    "不良 不良品 不合格 不合格品 缺陷 异常 異常 欠陥 불량 불량품 불합격 결함"
)
# Zero may be the good class or the first kind of defect; "negative" may be the outcome of the test
# for defects or the verdict on the part.
_UNCLEAR = words("false true no yes negative negatives positive positives neg pos")
# Inside of a longer name these say that the folder may well hold good parts.
_GOOD_PARTS = words("good ok okay normal")
# Kinds of damage that are no products. `chip` and `hole` are left out, since both may be a part.
_KINDS = _plain_words(
    "scratch scratches scratched crack cracks cracked dent dents dented broken breakage stain "
    "stains stained contamination contaminations contaminated burr burrs rust corrosion "
    "misalignment deformed deformation "
    "kratzer riss risse delle dellen bruch fleck flecken verschmutzung rost "
    "rayure rayures fissure fissures tache taches cassure "
    "rasguno rasgunos aranazo aranazos grieta grietas abolladura mancha manchas rotura "
    "graffio graffi crepa crepe ammaccatura macchia macchie risco trinca "
    "划痕 裂纹 污渍 傷 割れ 汚れ 스크래치 균열"
)
# Too short to mean anything inside of a longer name such as `io_board`.
_ONLY_ALONE = words("io ko pass passed fel vada hata zle 良 傷")
_DENIALS = _plain_words("no not non without free ohne frei kein keine nicht sans sin sem senza bez")

_ROLES: dict[str, Role] = {
    **dict.fromkeys(
        _plain_words(
            "train training trains trainset trainingset learn learning teach teachin "
            "trainieren entrenamiento apprentissage entrainement addestramento treino treinamento"
        ),
        "train",
    ),
    **dict.fromkeys(
        _plain_words("validation val valid calibration validierung validacion validazione"),
        "validation",
    ),
    **dict.fromkeys(
        _plain_words("test testing tests testset eval evaluation prueba pruebas teste testes"),
        "test",
    ),
    **dict.fromkeys(
        _plain_words("groundtruth gt mask masks annotation annotations maske masken masques"),
        "masks",
    ),
}


def meaning_of_word(word: str) -> Literal[0, 1] | None:
    """Return 0 for a word that means good, 1 for one that means defective, None for others.

    Case, accents, blanks, dashes, dots and underscores do not matter: `iO`, `i.O.`, `Not OK`,
    `Défaut`.
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
    """Return what the name of a folder of test images says of them, in a published layout.

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


def meaning_in_name(name: str) -> Literal[0, 1] | None:
    """Return what the words within a longer name say: 0 for `ok_front`, 1 for `NG-2026`.

    Names of damage such as `scratches cam 2` say 1 too. None where no word is known, where words
    contradict each other, and where one is denied, as in `no_scratch`.
    """
    known = meaning_of_word(name)
    if known is not None:
        return known
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    parts = {_plain(part) for part in re.split(r"[\W\d_]+", unicodedata.normalize("NFC", apart))}
    parts -= _ONLY_ALONE
    good, bad = parts & _GOOD, parts & (_DEFECTIVE | _KINDS)
    if parts & _DENIALS or bool(good) == bool(bad):
        return None
    return 0 if good else 1


def role_of_folder(name: str) -> Role:
    """Return what a folder is for by its name: `train`, `validation`, `test`, `masks` or None."""
    return _ROLES.get(_plain(name))
