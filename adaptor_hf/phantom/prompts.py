"""Class prompts for zero-shot classification of the phantom's findings."""

# For each finding: texts that say it is there, texts that say it is not.
ZERO_SHOT_PROMPTS: dict[str, tuple[list[str], list[str]]] = {
    "consolidation": (
        ["There is focal consolidation.", "Airspace opacity in the lung.", "Findings suspicious for pneumonia."],
        ["No focal consolidation.", "The lungs are clear.", "No evidence of pneumonia."],
    ),
    "effusion": (
        ["There is a pleural effusion.", "Pleural fluid is present.", "Blunting of the costophrenic angle by fluid."],
        ["No pleural effusion.", "There is no pleural fluid.", "The costophrenic angles are sharp."],
    ),
    "pneumothorax": (
        ["There is a pneumothorax.", "A visceral pleural line is seen.", "Air in the pleural space."],
        ["No pneumothorax.", "No pleural line is seen.", "No evidence of pneumothorax."],
    ),
    "cardiomegaly": (
        ["The heart is enlarged.", "Cardiomegaly.", "The cardiac silhouette is enlarged."],
        ["The heart size is normal.", "No cardiomegaly.", "The cardiac silhouette is within normal limits."],
    ),
    "nodule": (
        ["There is a pulmonary nodule.", "A nodule is seen in the lung.", "Lung nodule; follow-up CT is advised."],
        ["No pulmonary nodule.", "There is no nodule or mass.", "No discrete lung nodule."],
    ),
    "atelectasis": (
        [
            "There is atelectasis.",
            "Plate-like atelectasis at the lung base.",
            "Volume loss, elevated diaphragm.",
        ],
        ["No atelectasis.", "There is no atelectasis.", "No evidence of volume loss."],
    ),
    "edema": (
        ["There is pulmonary edema.", "Interstitial edema.", "The pulmonary vessels are engorged."],
        ["No pulmonary edema.", "There is no pulmonary edema.", "The pulmonary vasculature is normal."],
    ),
    "device": (
        ["An endotracheal tube is in place.", "A central venous catheter is present.", "A pacemaker is seen."],
        ["No support devices are seen.", "No lines or tubes.", "There is no line, tube or pacemaker."],
    ),
}
