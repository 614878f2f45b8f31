"""The words of the reports; {side} and the like are filled in by `reports`."""

NEGATIVE = {
    "consolidation": (
        "No focal consolidation.",
        "No consolidation or infiltrate is identified.",
        "No airspace disease to suggest pneumonia.",
        "There is no evidence of pneumonia.",
    ),
    "effusion": (
        "No pleural effusion.",
        "The costophrenic angles are sharp.",
        "There is no pleural fluid.",
        "No evidence of pleural effusion on either side.",
        "Costophrenic sulci are clear.",
        "No sizable effusion is seen.",
        "Pleural spaces are free of fluid.",
    ),
    "pneumothorax": (
        "No pneumothorax.",
        "There is no evidence of pneumothorax.",
        "No pneumothorax is identified.",
        "No definite pneumothorax.",
        "No pleural line to suggest pneumothorax.",
        "Negative for pneumothorax.",
    ),
    "cardiomegaly": (
        "The heart size is normal.",
        "Heart size is within normal limits.",
        "The cardiac silhouette is not enlarged.",
        "Normal cardiac silhouette.",
        "No cardiomegaly.",
        "The heart is normal in size.",
        "The heart is not enlarged.",
    ),
    "nodule": (
        "No pulmonary nodule.",
        "No suspicious nodule is seen.",
        "There is no nodule or mass.",
        "No discrete lung nodule.",
    ),
    "atelectasis": ("No atelectasis.", "There is no atelectasis.", "No evidence of volume loss."),
    "edema": (
        "No pulmonary edema.",
        "There is no pulmonary edema.",
        "No evidence of pulmonary vascular congestion.",
        "No overt pulmonary edema.",
        "The pulmonary vasculature is normal.",
    ),
    "device": ("No support devices are seen.", "No lines or tubes.", "There is no line, tube or pacemaker."),
}
# How often an absent finding is denied; the other findings always are.
DENIED = {"nodule": 0.25, "atelectasis": 0.2, "edema": 0.35, "device": 0.15}
# Only where no finding of the lungs is there.
NO_OPACITY = ("There is no focal airspace opacity.", "No confluent opacity.")
# Only where the pleural spaces are free as well.
CLEAR_LUNGS = (
    "The lungs are clear.",
    "Both lungs are well aerated without consolidation.",
    "Lungs are free of focal opacity.",
    "Clear lungs.",
)
NO_FLUID_NO_AIR = (
    "No pleural effusion or pneumothorax.",
    "There is no pneumothorax or pleural effusion.",
    "Neither pleural effusion nor pneumothorax is seen.",
    "The pleural spaces are clear, without effusion or pneumothorax.",
    "No effusion. No pneumothorax.",
)
NORMAL_IMPRESSION = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "No acute intrathoracic process.",
    "No radiographic evidence of acute disease.",
    "No acute findings.",
)
SIZE_WORDS = {
    "consolidation": (
        ("small", "focal", "subtle", "patchy"),
        ("moderate", "confluent"),
        ("large", "extensive", "dense"),
    ),
    "effusion": (("small", "trace", "minimal"), ("moderate", "moderate-sized"), ("large", "massive")),
    "pneumothorax": (("small", "tiny", "minimal"), ("moderate", "moderate-sized"), ("large", "sizeable")),
    "cardiomegaly": (("mild", "borderline to mild"), ("moderate",), ("severe", "marked")),
    "nodule": (("small", "subcentimeter", "tiny"), ("moderate-sized", "medium-sized"), ("large", "sizeable")),
    "atelectasis": (("mild", "minimal", "subsegmental", "linear"), ("moderate",), ("marked", "extensive")),
    "edema": (("mild", "minimal"), ("moderate",), ("severe", "marked")),
}
CONSOLIDATION_NOUNS = (
    "consolidation",
    "airspace opacity",
    "airspace disease",
    "infiltrate",
    "parenchymal opacity",
    "airspace consolidation",
)
NODULE_NOUNS = ("nodule", "pulmonary nodule", "lung nodule", "rounded nodule", "solitary nodule")
EDEMA_NOUNS = ("pulmonary edema", "interstitial edema", "interstitial pulmonary edema", "pulmonary vascular congestion")
ATELECTASIS_NOUNS = ("atelectasis", "atelectatic change", "plate-like atelectasis")
# {side} and {height} are those of the device.
DEVICE_PHRASES = {
    "endotracheal tube": (
        "an endotracheal tube {height} cm above the carina",
        "an endotracheal tube with its tip {height} cm above the carina",
        "an endotracheal tube in standard position",
    ),
    "enteric tube": (
        "an enteric tube that ends in the stomach",
        "a nasogastric tube below the diaphragm",
        "an enteric tube with its tip in the stomach",
    ),
    "central venous catheter": (
        "a {side} central venous catheter",
        "a {side} central line with its tip in the superior vena cava",
        "a {side} internal jugular catheter",
    ),
    "pacemaker": (
        "a {side} pacemaker",
        "a {side}-sided pacemaker with leads in the right atrium and right ventricle",
        "a {side} chest wall pacemaker",
    ),
}
ZONE_PLACES = {
    "upper": (
        "in the {side} upper lobe",
        "in the {side} upper zone",
        "in the {side} upper lung",
        "towards the {side} apex",
    ),
    "mid": ("in the {side} mid lung", "in the {side} mid zone", "in the {side} midlung zone"),
    "lower": (
        "in the {side} lower lobe",
        "at the {side} lung base",
        "in the {side} lower zone",
        "in the {side} basal lung",
    ),
}
BOTH_PLACES = {
    "upper": ("in both upper lobes", "in the upper zones bilaterally"),
    "mid": ("in both mid lungs", "in the mid zones bilaterally"),
    "lower": ("at both lung bases", "in the lower lobes bilaterally", "in both lower zones"),
}
CERTAIN = (
    "There is {a}.",
    "{A} is seen.",
    "{A} is present.",
    "{A} is noted.",
    "Findings include {a}.",
    "{A} is again demonstrated.",
)
UNCERTAIN = (
    "There is possibly {a}.",
    "Findings suggest {a}.",
    "{A} is suspected.",
    "Appearances are suspicious for {a}.",
    "There may be {a}.",
    "{A} is favoured.",
    "There is probably {a}.",
)
