"""Prediction from a saved model, without labels and without training; also `python -m adaptor_hf.prediction`."""
