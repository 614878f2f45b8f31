"""Names of classes and groups that come from the cells of a table: in private mode only words of the field are said."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable

from .keys import keyed_hash
from .mode import names_to_say, private_key, speaks_privately

logger = logging.getLogger(__name__)

# Findings, devices, places, grades and words of yes and no, in English, German, Spanish and French; without accents.
_FIELD = """
a abnormal abnormalities abnormality absent acr acute aggressive air airspace and angle any aortic ap apical artifact
asbestosis aspiration asthma atelectasia atelectasis atypical auffallig azygos background bacteria bacterial basal
base baseline bedside benign benigne benigno bi bilateral birads blastic bone borderline bronchiectasis bronchitis
bullous c calcification calcified calcinosis cancer carcinoma cardiac cardiomediastinal cardiomediastinum cardiomegaly
catheter cavitation cavity central chest chronic class clear clips collapse component congestion consolidacion
consolidation copd covid covid19 cut cyst d definite degeneration density derrame deterioration device devices
diaphragm diffuse disease distension drain duct e edema effusion elevated elevation emphysema empyema endotracheal
enlarged enlargement epanchement erect erguss ergusse erkrankung eventration f false female few fibrosis finding
findings fluid focal follow followup foreign fracture fractures frontal fungal gesund gesunde gold grad grade
granuloma group hardware healthy heart hemithorax hemorrhage hernia hiatal hiatus high hilar hydropneumothorax
hyperinflation i icd ii iii ild implant improved in inconclusive indeterminate infarct infected infection infiltrate
infiltrates infiltration inflammation injury intermediate interstitial interval iv ja kein keine keiner kellgren kl
klasse krank l laminar large lateral lawrence left lesion lesions leve level ligero likely line linear links lobar
lobe loss low lower luftgefullt lung lungs lymph lymphadenopathy m male malign malignant maligne maligno mass masses
mediastinal mediastinum medical medium metastases metastasis mid middle mild minimal mittel moderado moderate multiple
n nasogastric neg negatif negativ negative negativo nein neoplasm neumonia neumotorax new no nodular nodule nodules
nodulo non none nonspecific normal normale normales not nothing o odema oedema of old on opacification opacities
opacity or osseous osteoarthritis osteophyte other others otro otros oui p pa pacemaker parenchymal patchy
pathological pathologique pathologisch pericardial perihilar peripheral picc plate pleuraerguss pleural pleurale
pneumomediastinum pneumonia pneumonie pneumoperitoneum pneumothorax port portable pos positif positioning positiv
positive positivo possible post present probable prosthesis pulmonary quantity r rads recht rechts resolved reticular
rib ribs right rotated sain sane sano sarcoidosis sarkoidose scar scarring schwer scoliosis score sequelae severe
severity severo shadow shift shoulder si sick silicosis small spinal spine spondylosis stabil stable stadium stage
stent sternotomy subcutaneous subsegmental supine support surgery suspected suspicious t tb thickened thickening
thoracic thymus tnm to tortuous trace trachea true tube tuber tubercular tuberculosis tuberkulose tumor tumour type
typical u uncertain unclear unifocal unilateral unknown upper v vascular vascularity vein venous verdickung vert
vertebral very vi viral virus volume wide widened widening with without worse x y yes z zone
"""
_WORDS = frozenset(_FIELD.split())

# Such as 3, 4a and T2.
_GRADE = re.compile("[a-z]?[0-9]{1,2}[a-z]?")


def names_written(names: Iterable[str]) -> dict[str, str]:
    """
    How names that come from a table's cells, such as those of classes, are written and said.

    In private mode a name is written as it is where all its words are words of the field, with at most one number of
    up to two digits, or where an option named it (`--class_name`, `--positive_label`). Others could be a person's name
    or a date: they are `class-` and a keyed hash, or where there is no key, `class-` and a number; their count is
    logged.

    Args:
        names (`Iterable[str]`): Different ones; repeated ones count once.

    Returns:
        `dict[str, str]`: Each name and what stands for it; outside private mode itself.
    """
    names = sorted(set(names))
    if not speaks_privately():
        return {name: name for name in names}
    key, allowed = private_key(), names_to_say()
    hidden = [name for name in names if name.strip() not in allowed and not _is_of_the_field(name)]
    if hidden:
        logger.warning(
            "%d of %d class or group names of the table are on no list of words of the field, and are written as keyed "
            "hashes or numbers. Where they name nobody, allow them with --class_name of train_downstream.py.",
            len(hidden), len(names),
        )  # fmt: skip
    said = {name: f"class-{keyed_hash(name, key)[:8] if key else number}" for number, name in enumerate(hidden, 1)}
    return {name: said.get(name, name) for name in names}


def _is_of_the_field(name: str) -> bool:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    # A letter without a Latin counterpart is lost in `plain`.
    lost = sum(letter.isalpha() for letter in name) > sum(letter.isalpha() for letter in plain)
    words = re.findall(r"[a-z0-9]+", plain)
    others = [word for word in words if word not in _WORDS]
    return bool(words) and not lost and (not others or (len(others) == 1 and bool(_GRADE.fullmatch(others[0]))))


__all__ = ["names_written"]
