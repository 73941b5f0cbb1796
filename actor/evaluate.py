"""Measures models on a problem set through an engine: one start-up, then weights are exchanged from model to model."""

import argparse
import asyncio
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from actor.engine import Engine
from actor.engines import add_engine_arguments, make_engine
from dcpo_async.errors import DcpoError
from dcpo_async.grading import GradingPool, Verdict
from dcpo_async.metrics import write_json
from dcpo_async.prompts import encode_prompts, load_problems
from dcpo_async.records import Lease, Prompt, Response, Sampling

log = logging.getLogger(__name__)

GRADING_TIMEOUT_SECONDS = 5.0


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; writes one JSON file with the figures of every model."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    try:
        asyncio.run(_run(_parser().parse_args(argv)))
    except DcpoError as error:
        print(f"dcpo eval: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dcpo eval", description="Accuracy of models on a problem set.")
    parser.add_argument("models", nargs="+", type=Path, help="Hugging Face folders of one architecture and tokenizer")
    parser.add_argument("--problems", required=True, help=".jsonl or .parquet file, or dataset id")
    parser.add_argument("--problem-field", default="problem")
    parser.add_argument("--answer-field", default="answer")
    parser.add_argument("--split", default="test", help="of a dataset id (default test)")
    parser.add_argument("--subset", help="configuration of a dataset id")
    parser.add_argument("--answer-pattern", help="regular expression with one group that finds the answer")
    parser.add_argument("--extraction", choices=("boxed", "answer", "last_number"), default="boxed")
    parser.add_argument("--system-prompt", help="system message of the chat template")
    parser.add_argument("--limit", type=int, help="measure on the first so many problems")
    parser.add_argument("--samples", type=int, default=1, help="responses for each problem (default 1)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-prompt-tokens", type=int, default=1024)
    parser.add_argument("--max-response-tokens", type=int, default=3072)
    parser.add_argument("--seed", type=int, default=0)
    add_engine_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    return parser


async def _run(options: argparse.Namespace) -> None:
    problems = load_problems(
        options.problems,
        problem_field=options.problem_field,
        answer_field=options.answer_field,
        answer_pattern=options.answer_pattern,
        split=options.split,
        subset=options.subset,
    )
    encoded = encode_prompts(
        problems.problems[: options.limit],
        AutoTokenizer.from_pretrained(options.models[0]),
        system_prompt=options.system_prompt,
        template="{problem}",
        max_prompt_tokens=options.max_prompt_tokens,
    )
    sampling = Sampling(options.samples, options.temperature, options.max_response_tokens, options.seed)
    engine = make_engine(
        options,
        dtype="float32" if options.device == "cpu" else "bfloat16",
        max_model_tokens=options.max_prompt_tokens + options.max_response_tokens,
        max_responses=min(256, len(encoded.prompts) * options.samples),
        kv_after_update="keep",
    )
    pool = GradingPool(1, GRADING_TIMEOUT_SECONDS, options.extraction)
    results: dict[str, Any] = {}
    try:
        for version, folder in enumerate(options.models, start=1):
            await (engine.start if version == 1 else engine.adopt)(folder, version)
            started = time.monotonic()
            results[str(folder)] = await measure(engine, pool, encoded.prompts, sampling)
            log.info("%s: %s in %.1f s", folder, results[str(folder)], time.monotonic() - started)
    finally:
        await engine.close()
        pool.close()
    write_json(options.out, results)


async def measure(engine: Engine, pool: GradingPool, prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, float]:
    """Mean accuracy over problems, each the mean over its samples.

    Returns:
        accuracy, its standard error over problems, mean response length in tokens, share truncated, and the shares
        of problems with at least one and with only right answers.
    """
    graded = await asyncio.gather(
        *(_answer(engine, pool, prompt, place, sampling) for place, prompt in enumerate(prompts))
    )
    by_problem = [fmean(verdict.correct for _, verdict in pairs) for pairs in graded]
    responses = [response for pairs in graded for response, _ in pairs]
    accuracy = fmean(by_problem)
    variance = fmean((value - accuracy) ** 2 for value in by_problem)
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(variance / len(by_problem)),
        "any_correct": fmean(value > 0 for value in by_problem),
        "all_correct": fmean(value == 1 for value in by_problem),
        "response_length": fmean(len(response.token_ids) for response in responses),
        "truncated": fmean(response.finish_reason == "length" for response in responses),
        "problems": float(len(by_problem)),
    }


async def _answer(
    engine: Engine, pool: GradingPool, prompt: Prompt, place: int, sampling: Sampling
) -> list[tuple[Response, Verdict]]:
    lease = Lease(
        position=place,
        attempt=1,
        prompt_id=prompt.id,
        visit=1,
        min_version=0,
        prompt_token_ids=np.asarray(prompt.token_ids, dtype=np.int32),
        answer=prompt.answer,
    )
    responses = await engine.generate(lease, sampling)
    verdicts = await pool.grade_many([response.text for response in responses], prompt.answer)
    return list(zip(responses, verdicts, strict=True))


if __name__ == "__main__":
    main()
