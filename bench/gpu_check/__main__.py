"""Runs the checks, each in a process of its own, and prints what they found as a table with the card's name."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from bench.gpu_check.findings import Finding, Place, SkippedError

CHECKS = {
    "G1": ("training", "start", "start, devices, UUID"),
    "G2": ("training", "stages", "bfloat16 under each ZeRO stage, killed and resumed"),
    "G3": ("memory", "peaks", "memory of a step"),
    "G4": ("compute", "speed", "seconds of a micro-batch"),
    "G5": ("compute", "packing", "sequences side by side"),
    "G6": ("memory", "storage", "publication and checkpoint"),
    "G7": ("sampling", "rounding", "rounding of logits"),
    "G8": ("sampling", "sampler", "vLLM's sampler for GPUs"),
}
"""Module and function of each; a module is imported only where its check runs, since packages may be missing."""
LIMIT_SECONDS = 1800


def findings(check: str, place: Place) -> Iterator[Finding]:
    """What one check finds, in this process.

    Raises SkippedError where something that it needs is not here.
    """
    module_name, function, _ = CHECKS[check]
    if place.is_gpu and not torch.cuda.is_available():
        raise SkippedError("no GPU: torch.cuda.is_available() is False")
    try:
        module = importlib.import_module(f"bench.gpu_check.{module_name}")
    except ModuleNotFoundError as error:
        raise SkippedError(f"{error.name} is not installed") from error
    yield from getattr(module, function)(place)


def run_alone(check: str, options: argparse.Namespace) -> dict[str, object]:
    """Run a check in a process of its own: what it does to the device, or dies of, stays there."""
    words = ["--only", check, "--device", options.device, "--folder", str(options.folder)]
    words += ["--packages", str(options.packages)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", *words],
        # There is no Triton for CPUs but its interpreter.
        env=os.environ | ({"TRITON_INTERPRET": "1"} if options.device == "cpu" else {}),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in lines]
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
        found.append({"failed": (done.stderr.strip().splitlines() or ["no word"])[-1]})
    return {"check": check, "title": CHECKS[check][2], "found": found}


def rendered(report: dict[str, object]) -> str:
    """A check as lines of Markdown."""
    lines = [f"\n**{report['check']}** {report['title']}\n"]
    found = report["found"]
    assert isinstance(found, list)
    for one in found:
        if "skipped" in one or "failed" in one:
            kind, reason = next(iter(one.items()))
            lines.append(f"- {kind}: {reason}")
            continue
        verdict = {None: "", True: " ✓", False: " ✗"}[one["is_met"]]
        bound = f" ({one['bound']})" if one["bound"] else ""
        lines.append(f"- {one['name']}: {one['found']}{bound}{verdict}")
    return "\n".join(lines)


def main() -> None:
    """Exit 1 where a check failed or missed a bound; what is skipped is told and counts as neither."""
    parser = argparse.ArgumentParser(prog="bench.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run in tiny sizes")
    parser.add_argument("--checks", default=",".join(CHECKS), help="such as G3,G5 (default all)")
    parser.add_argument("--folder", type=Path, help="for models and checkpoints: 150 GB on a GPU (default temporary)")
    parser.add_argument("--packages", type=Path, default=Path("build/gpu_packages"), help="see `make gpu-packages`")
    parser.add_argument("--only", choices=CHECKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        place = Place(options.device, options.folder, options.packages)
        try:
            for finding in findings(options.only, place):
                print(json.dumps(asdict(finding)), flush=True)
        except SkippedError as reason:
            print(json.dumps({"skipped": str(reason)}))
        return
    unknown = set(options.checks.split(",")) - CHECKS.keys()
    if unknown:
        parser.error(f"no checks {sorted(unknown)}; there are {', '.join(CHECKS)}")
    card = torch.cuda.get_device_name(0) if options.device == "cuda" and torch.cuda.is_available() else "no GPU"
    print(f"{card}; torch {torch.__version__}, Python {sys.version.split()[0]}; device {options.device}", flush=True)
    is_good = True
    with tempfile.TemporaryDirectory(prefix="dcpo-gpu-check-") as scratch:
        options.folder = options.folder or Path(scratch)
        for check in options.checks.split(","):
            report = run_alone(check, options)
            print(rendered(report), flush=True)
            found = report["found"]
            assert isinstance(found, list)
            is_good &= not any("failed" in one or one.get("is_met") is False for one in found)
    raise SystemExit(0 if is_good else 1)


if __name__ == "__main__":
    main()
