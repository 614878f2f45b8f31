"""What is wrong between a torch build and a GPU is said with the way out."""

import pytest
import torch

from adaptor_hf.training import summary


class TestEnvironment:
    def test_nothing_is_wrong_with_this_machine(self):
        assert summary.environment_warnings() == []

    def simulate(self, monkeypatch, available: bool, **functions):
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def test_an_old_driver_is_named_with_the_way_out(self, monkeypatch):
        def init():
            raise RuntimeError("The NVIDIA driver on your system is too old (found version 12080).")

        self.simulate(monkeypatch, False, init=init)
        (warning,) = summary.environment_warnings()
        assert "driver is older than this torch build needs (CUDA 13.2)" in warning
        assert "README" in warning

    def test_a_machine_without_gpu_is_no_problem(self, monkeypatch):
        def init():
            raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU.")

        self.simulate(monkeypatch, False, init=init)
        assert summary.environment_warnings() == []

    @pytest.mark.parametrize(
        ("capability", "built", "fits"),
        [
            ((7, 5), ["sm_75", "sm_80"], True),
            ((7, 0), ["sm_75", "sm_80"], False),
            ((8, 6), ["sm_80", "sm_90"], True),
            ((12, 0), ["sm_90", "sm_100"], False),
            ((12, 0), ["sm_90", "compute_90"], True),
            ((9, 0), ["sm_90a"], True),
        ],
    )
    def test_a_gpu_that_the_build_has_no_code_for_is_named(self, monkeypatch, capability, built, fits):
        self.simulate(
            monkeypatch,
            True,
            get_device_capability=lambda: capability,
            get_arch_list=lambda: built,
            get_device_name=lambda: "Some GPU",
        )
        found = summary.environment_warnings()
        assert found == [] if fits else "no code for Some GPU" in found[0] and "README" in found[0]
