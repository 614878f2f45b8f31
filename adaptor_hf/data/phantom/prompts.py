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
}
