"""How a sweep's cost grows with tokens, prompt length and heads, its peak of memory, and what the paper's scale takes.

Run by `make scaling` on the default model and text. Prints tables, writes results/benchmarks/scaling.json, and draws
docs/scaling.png, which docs/performance.md shows.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from matplotlib.axes import Axes
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PretrainedConfig

import selfrepair
from selfrepair.figures.style import layout, looks
from selfrepair.files.hdf5 import open_hdf5
from selfrepair.model.flops import layer_flops, sweep_flops
from selfrepair.model.model import Model
from selfrepair.model.parts import find_parts

TOKENS = (512, 1024, 2048, 4096, 8192)
LENGTH = 128
LENGTHS = (16, 32, 64, 128, 256, 512)
TOKENS_OF_LENGTHS = 2048
HEADS = (1, 2, 3, 6, 9)
TOKENS_OF_HEADS = 1024

PAPER_TOKENS = 1_000_000
PAPER_MODELS: dict[str, PretrainedConfig] = {
    "Pythia-1B": GPTNeoXConfig(
        num_hidden_layers=16, hidden_size=2048, num_attention_heads=8, intermediate_size=8192, vocab_size=50304
    ),
    "Llama-7B": LlamaConfig(
        num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, intermediate_size=11008, vocab_size=32000
    ),
}
H100_PEAK = {"bfloat16": 989e12, "float32 (TF32)": 494e12, "float32": 67e12}
"""Dense operations a second of the SXM card, by NVIDIA's data sheet; without sparsity."""
SHARE_OF_PEAK = 0.3
AUTHORS_FORWARDS = 4
"""Whole forward passes a head in the authors' code, the unembedding of every position with each."""


def text(file: Path, n_tokens: int, length: int) -> np.ndarray:
    """``n_tokens`` of the text as prompts [prompt, pos] of any length."""
    with open_hdf5(file, "tokens") as dataset:
        ids = dataset["tokens"].values.astype(np.int64).ravel()
    if len(ids) < n_tokens:
        raise SystemExit(f"the text has {len(ids)} tokens, {n_tokens} are wanted")
    return ids[:n_tokens].reshape(-1, length)


def job(model: Model, tokens: np.ndarray, n_heads: int | None = None) -> Callable[[], Any]:
    """A sweep over heads of the middle layer, its clean run and its donors' included."""
    layer = model.n_layers // 2
    heads = [(layer, head) for head in range(n_heads or model.n_heads)]
    return lambda: selfrepair.ablate_heads(model, tokens, np.roll(tokens, 1, axis=0), heads=heads)


def interleaved(jobs: dict[int, Callable[[], Any]], repeats: int) -> dict[int, float]:
    """Median seconds of each job, run in turn so that a slow minute of the machine meets all of them."""
    seen: dict[int, list[float]] = {size: [] for size in jobs}
    for work in jobs.values():
        work()
    for _ in range(repeats):
        for size, work in jobs.items():
            start = time.perf_counter()
            work()
            seen[size].append(time.perf_counter() - start)
    return {size: statistics.median(times) for size, times in seen.items()}


def off_a_line(sizes: list[int], seconds: list[float]) -> float:
    """Largest relative difference of times from the line through zero and the largest size."""
    x, y = np.array(sizes, float), np.array(seconds)
    return float(np.abs(y / (x * y[-1] / x[-1]) - 1).max())


def peak_memory(options: argparse.Namespace, n_tokens: int) -> float:
    """Peak memory in GiB of a process that sweeps this many tokens."""
    command = [sys.executable, __file__, str(options.model), str(options.tokens), "--peak-of", str(n_tokens)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def paper_scale() -> list[dict[str, Any]]:
    """Operations and GPU-hours of all heads on the paper's number of tokens."""
    rows = []
    for name, config in PAPER_MODELS.items():
        with torch.device("meta"):
            model = find_parts(AutoModelForCausalLM.from_config(config))
        n_prompts = PAPER_TOKENS / LENGTH
        heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
        ours = sweep_flops(model, heads, 1, LENGTH) * n_prompts
        forward = sum(layer_flops(model, layer, LENGTH) for layer in range(model.n_layers))
        forward += 2 * LENGTH * model.W_U.numel()
        theirs = AUTHORS_FORWARDS * forward * n_prompts * len(heads)
        operations = {"ours": ours, "authors": theirs}
        hours = {
            dtype: {who: flops / (peak * SHARE_OF_PEAK) / 3600 for who, flops in operations.items()}
            for dtype, peak in H100_PEAK.items()
        }
        rows.append(
            {
                "model": name,
                "heads": len(heads),
                "exaflop": ours / 1e18,
                "exaflop_authors": theirs / 1e18,
                "h100_hours": hours,
            }
        )
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    model = selfrepair.load_model(options.model)
    peaks = [peak_memory(options, size) for size in TOKENS]
    by_tokens = interleaved({n: job(model, text(options.tokens, n, LENGTH)) for n in TOKENS}, options.repeats)
    by_length = interleaved(
        {n: job(model, text(options.tokens, TOKENS_OF_LENGTHS, n)) for n in LENGTHS}, options.repeats
    )
    few = text(options.tokens, TOKENS_OF_HEADS, LENGTH)
    by_heads = interleaved({n: job(model, few, n) for n in HEADS}, options.repeats)
    # A sweep's clean runs cost the same whatever the number of heads: a line, but not through zero.
    slope, fixed = np.polyfit(list(by_heads), list(by_heads.values()), 1)
    fitted = slope * np.array(list(by_heads)) + fixed
    return {
        "tokens": list(by_tokens),
        "seconds_by_tokens": list(by_tokens.values()),
        "off_a_line_by_tokens": off_a_line(list(by_tokens), list(by_tokens.values())),
        "peak_memory_gib_by_tokens": peaks,
        "prompt_lengths": list(by_length),
        "seconds_by_prompt_length": list(by_length.values()),
        "tokens_by_prompt_length": TOKENS_OF_LENGTHS,
        "heads": list(by_heads),
        "seconds_by_heads": list(by_heads.values()),
        "seconds_a_head": float(slope),
        "seconds_of_clean_runs": float(fixed),
        "off_a_line_by_heads": float(np.abs(np.array(list(by_heads.values())) / fitted - 1).max()),
        "tokens_by_heads": TOKENS_OF_HEADS,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "paper_scale": paper_scale(),
    }


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw time against tokens, prompt length and heads, and peak memory against tokens."""
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 48.0)
        axes = figure.subplots(1, 4)
        tokens = np.array(figures["tokens"])
        seconds = np.array(figures["seconds_by_tokens"])
        heads = np.array(figures["heads"])
        line = figures["seconds_of_clean_runs"] + figures["seconds_a_head"] * heads
        _panel(axes[0], tokens, seconds, "tokens", "time (s)", seconds[-1] * tokens / tokens[-1])
        _panel(axes[1], tokens, figures["peak_memory_gib_by_tokens"], "tokens", "peak memory (GiB)")
        per_token = 1e3 * np.array(figures["seconds_by_prompt_length"]) / figures["tokens_by_prompt_length"]
        _panel(axes[2], figures["prompt_lengths"], per_token, "tokens a prompt", "time a token (ms)")
        axes[2].set_xscale("log", base=2)
        axes[2].set_xticks(figures["prompt_lengths"], map(str, figures["prompt_lengths"]))
        _panel(axes[3], heads, figures["seconds_by_heads"], "heads", "time (s)", line)
        for letter, ax in zip("abcd", axes, strict=True):
            layout.panel_letter(ax, letter)
            ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
        axes[3].locator_params(axis="x", integer=True)
        figure.savefig(path, dpi=200)


def _panel(ax: Axes, x: Any, y: Any, x_label: str, y_label: str, line: Any = None) -> None:
    if line is not None:
        ax.plot(x, line, color=looks.FAINT, linewidth=0.8)
    ax.plot(x, y, color=looks.INK, marker="o", linestyle="none" if line is not None else "-")
    ax.set(xlabel=x_label, ylabel=y_label)


def show(figures: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"heads of the middle layer, {figures['threads']} threads, medians of {figures['repeats']}"]
    for x, y in (
        ("tokens", "seconds_by_tokens"),
        ("tokens", "peak_memory_gib_by_tokens"),
        ("prompt_lengths", "seconds_by_prompt_length"),
        ("heads", "seconds_by_heads"),
    ):
        lines.append(f"{x:<28}" + "".join(f"{value:>9}" for value in figures[x]))
        lines.append(f"{y:<28}" + "".join(f"{value:>9.3g}" for value in figures[y]))
    lines += [f"{name:<28}{figures[name]:>9.3g}" for name in ("off_a_line_by_tokens", "off_a_line_by_heads")]
    for row in figures["paper_scale"]:
        lines.append(
            f"{row['model']}: {row['heads']} heads, {PAPER_TOKENS:,} tokens: {row['exaflop']:.3g} EFLOP, "
            f"authors' code {row['exaflop_authors']:.3g}"
        )
        lines += [
            f"  {dtype:<16}{hours['ours']:>9.3g} H100-hours, authors' {hours['authors']:.3g}"
            for dtype, hours in row["h100_hours"].items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model snapshot folder")
    parser.add_argument("tokens", type=Path, help="tokens file")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak-of", type=int, help="sweep this many tokens once and print the peak memory in GiB")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.peak_of:
        job(selfrepair.load_model(options.model), text(options.tokens, options.peak_of, LENGTH))()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # noqa: T201
        return
    figures = measure(options)
    print(show(figures))  # noqa: T201
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.figure:
        draw(figures, options.figure)


if __name__ == "__main__":
    main()
