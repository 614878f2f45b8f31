"""Golden values of the reference code, and a plain model to load them into."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.conversion import convert_reference_state_dict

GOLDEN = Path(__file__).parent / "golden"


def golden(case: str) -> dict[str, torch.Tensor]:
    file = "losses" if case.startswith(("adaptor_contrastive", "clip", "convirt")) else "adaptor_outputs"
    values = load_file(GOLDEN / f"{file}.safetensors")
    found = {name.removeprefix(f"{case}/"): value for name, value in values.items() if name.startswith(f"{case}/")}
    assert found, f"no golden values of {case}"
    return found


def reference_parameters() -> dict[str, torch.Tensor]:
    values = load_file(GOLDEN / "adaptor_parameters.safetensors")
    return {name.removeprefix("param."): value for name, value in values.items()}


def reference_model(**config_kwargs) -> AdaptorModel:
    """The golden parameters in our model, float64, evaluation mode."""
    config, state_dict = convert_reference_state_dict(reference_parameters())
    model = AdaptorModel(AdaptorConfig(**{**config.to_dict(), **config_kwargs})).double()
    model.load_state_dict(state_dict)
    return model.eval()


def assert_relative(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm().clamp_min(1e-300)
    assert error <= tolerance, f"relative error {error:.3e} over {tolerance:.0e}"
