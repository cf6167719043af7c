"""How fast heads are ablated on an accelerator, beside its rate of matrix products, for random Llamas of several sizes.

python benchmarks/accelerator.py --device cuda
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.engine.sweep import sweep
from selfrepair.model.flops import sweep_flops
from selfrepair.model.model import Model
from selfrepair.model.placing import keep_matrices_in_bfloat16
from selfrepair.workflow.progress import Progress

SIZES = {
    "tiny": {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8},
    "1.1B": {
        **{"num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32},
        **{"num_key_value_heads": 4},
    },
    "7B": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
}
"""Llama's sizes, with a vocabulary of 32,000."""
MATRIX_ROWS = 16384
"""As many as tokens that go through the layers at a time."""


def load(size: str, weights: str | None, device: str) -> Model:
    """A random model, made on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=2048, **SIZES[size])
    dtype = torch.float32 if weights is None else torch.bfloat16
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    if weights is not None:
        keep_matrices_in_bfloat16(hf)
    return selfrepair.load_model(hf, device=device, weights=weights)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of a run, the first of which is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(size: str, weights: str | None, options: argparse.Namespace) -> str:
    """The line of a model."""
    model = load(size, weights, options.device)
    shape = (options.prompts, options.length)
    tokens = torch.randint(3, 32000, shape, generator=torch.Generator().manual_seed(0))
    clean, donor = run_clean(model, tokens), run_clean(model, tokens.roll(1, 0))
    heads = [(model.n_layers // 2, head) for head in range(min(options.heads, model.n_heads))]

    def ablate() -> None:
        with Progress(len(heads), "", "head", show=False) as bar:
            sweep(model, tokens, clean, donor.z.__getitem__, heads, bar)

    took = seconds(ablate, options.repeats)
    rate = sweep_flops(model, heads, *shape) / took
    d_mlp = SIZES[size]["intermediate_size"]
    a, b = (
        torch.randn(rows, columns, device=options.device, dtype=torch.float32 if weights is None else torch.bfloat16)
        for rows, columns in ((MATRIX_ROWS, model.d_model), (model.d_model, d_mlp))
    )
    products = 2 * MATRIX_ROWS * model.d_model * d_mlp / seconds(lambda: a @ b, 20)
    pairs = options.prompts * (options.length - 1) * len(heads) / took
    return (
        f"{size:5}  {weights or 'float32':8}  {rate / 1e12:13.3g}  {products / 1e12:16.3g}  {rate / products:5.2f}  "
        f"{pairs:14,.0f}"
    )


def main() -> None:
    """Measure, and print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["1.1B", "7B"], choices=SIZES)
    parser.add_argument("--heads", type=int, default=16, help="of the middle layer")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("model  matrices  sweep TFLOP/s  products TFLOP/s  share  pairs a second")  # noqa: T201
    for size in options.sizes:
        for weights in (None, "bfloat16"):
            print(measure(size, weights, options), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
