"""
CPU-seconds that `import adaptor_hf` costs over what any user of transformers pays anyway.

    python benchmarks/bench_import.py --repeats 7

Both are imported in fresh processes, in turn, so that a busy machine slows both alike. CPU time is the children's user
and system time; the medians are compared. On a busy machine that difference is mostly noise, so the CPU time of
`import adaptor_hf` in a process that has just imported transformers' part is taken as well. It should stay under 0.3 s.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys

VARIANTS = {
    "transformers": "from transformers import PreTrainedModel, ProcessorMixin, AutoModel",
    "adaptor_hf": "import adaptor_hf",
}
MARGINAL = f"""
import time
{VARIANTS["transformers"]}
start = time.process_time()
{VARIANTS["adaptor_hf"]}
print(time.process_time() - start)
"""


def cpu_seconds(code: str) -> float:
    """User and system seconds of a fresh Python process that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def marginal_seconds() -> float:
    """CPU seconds of importing adaptor_hf after transformers' part, in a fresh process."""
    result = subprocess.run([sys.executable, "-c", MARGINAL], check=True, capture_output=True, text=True)
    return float(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    for code in VARIANTS.values():
        cpu_seconds(code)  # fills the bytecode and page caches
    seconds = {name: [] for name in VARIANTS}
    marginal = []
    for repeat in range(repeats):
        order = list(VARIANTS)
        for name in order if repeat % 2 == 0 else reversed(order):
            seconds[name].append(cpu_seconds(VARIANTS[name]))
        marginal.append(marginal_seconds())
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    difference = round(medians["adaptor_hf"] - medians["transformers"], 3)
    found = {"median_cpu_s": medians, "difference_cpu_s": difference, "marginal_cpu_s": statistics.median(marginal)}
    print(json.dumps({"repeats": repeats, **found}))


if __name__ == "__main__":
    main()
