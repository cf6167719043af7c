"""Ablation of attention heads: every quantity of docs/definitions.md for each (head, prompt, position)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from selfrepair.engine.clean import prompt_chunks, run_clean
from selfrepair.engine.heads import Heads, check_heads
from selfrepair.engine.proof import Proof, layers_run, prove_heads, repeat_heads
from selfrepair.engine.replacements import constant_replacement, plain_replacements
from selfrepair.engine.sweep import arrays, sweep
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.files.kept import EVERY, keep
from selfrepair.measure.shard import Shard
from selfrepair.model.calls import left_as_it_was
from selfrepair.model.model import Model
from selfrepair.model.texts import text_reader
from selfrepair.model.token_ids import TokenIds, token_ids
from selfrepair.quantities import ABLATION_KINDS
from selfrepair.workflow.progress import Progress


def ablate_heads(
    model: Model,
    tokens: TokenIds | str,
    donors: TokenIds | str | None = None,
    heads: Heads | None = None,
    kind: str = "resample",
    progress: bool = False,
    tokenizer: Any = None,
) -> xr.Dataset:
    """Ablate heads one at a time, at all positions, and measure what compensates.

    Args:
        model: From `selfrepair.load_model`.
        tokens: Token ids [prompt, pos], integers of any type; or texts of as many tokens each, with a ``tokenizer``.
        donors: Token ids [prompt, pos] of each prompt's donor, or texts; wanted for kind "resample", and for no other.
        heads: The (layer, head) pairs to ablate; None means all.
        kind: "resample" (z of the donor prompt), "mean" (z averaged over all given prompts and positions) or "zero"
            (the head writes nothing).
        progress: Show a bar on a terminal, log lines elsewhere.
        tokenizer: For texts: the model's folder, or a fast tokenizer of transformers. BOS comes first where it has one.

    Returns:
        Dims ("head", "prompt", "pos"), pos being the predicting positions 0 .. T-2; coords layer and head_index of each
        head; variables as in docs/definitions.md, logits all but clean_scale [prompt, pos] and ablated_scale. The identity
        self_repair = from_heads + from_mlps + from_postnorms + from_layernorm has been checked on every token (post-norms where
        the model has some).

    Raises:
        ValueError: Shapes or lengths that differ, texts without a tokenizer, ids outside the vocabulary, a head that does not
            exist, an unknown kind, or an identity that does not hold (a model that the definitions do not cover).

    Example:
        >>> import selfrepair, torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 100}
        >>> model = selfrepair.load_model(LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, **sizes)).eval())
        >>> tokens = torch.randint(100, (6, 12))  # prompt, pos
        >>> ds = selfrepair.ablate_heads(model, tokens, donors=tokens.roll(1, dims=0), heads=[(0, 1), (2, 3)])
        >>> dict(ds.sizes)
        {'head': 2, 'prompt': 6, 'pos': 11}
        >>> parts = ds.self_repair_from_heads + ds.self_repair_from_mlps + ds.self_repair_from_layernorm
        >>> bool((abs(ds.self_repair - parts) < 1e-5).all())
        True
        >>> bool((ds.self_repair_from_heads.sel(head=1) == 0).all())  # nothing but an MLP and the norm follows the last layer's
        True
    """
    prompt_ids = token_ids(model, _as_ids(tokens, tokenizer, "tokens"), "tokens")
    donor_ids = _donor_ids(model, None if donors is None else _as_ids(donors, tokenizer, "donors"), prompt_ids, kind)
    heads = check_heads(model, heads)
    chunks = prompt_chunks(model, *prompt_ids.shape)
    proof = Proof(model, f"{kind} ablations", seed=0)
    repeated = proof.draw(np.ones((len(heads), len(prompt_ids)), bool), layers_run(model, heads))
    parts = []
    with (
        left_as_it_was(model.hf),
        Progress(len(chunks) * len(heads), "ablating heads", unit="head", show=progress) as bar,
    ):
        model.check_length(prompt_ids.shape[1])
        model.check_causal(prompt_ids[0])
        mean_z = mean_activation(model, [prompt_ids[chunk] for chunk in chunks]) if kind == "mean" else None
        for chunk in chunks:
            # A function of its own, so that nothing of one chunk is in memory while the next one runs.
            chunk_donors = None if donor_ids is None else donor_ids[chunk]
            part = _ablate_chunk(model, prompt_ids[chunk], chunk_donors, heads, kind, mean_z, bar)
            of_prompt = None if chunk_donors is None else chunk_donors[:, None].numpy()
            again = plain_replacements(model, kind, of_prompt, mean_z)
            within = proof.within(repeated, chunk)
            prove_heads(proof, repeat_heads(proof, within, heads, prompt_ids[chunk], again), arrays(part))
            parts.append(part)
    return _join(parts).assign_attrs(proof.attrs())


def _as_ids(tokens: TokenIds | str, tokenizer: Any, name: str) -> TokenIds:
    """Token ids of texts; whatever else is given as it is."""
    texts = [tokens] if isinstance(tokens, str) else tokens
    if not (isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts)):
        return tokens
    if tokenizer is None:
        raise ValueError(
            f"{name} is text: name the model's tokenizer too, as tokenizer=FOLDER, or give token ids [prompt, pos]"
        )
    return text_reader(tokenizer).ids(texts, name)


def _ablate_chunk(
    model: Model,
    tokens: Tensor,
    donors: Tensor | None,
    heads: Heads,
    kind: str,
    mean_z: Tensor | None,
    progress: Progress,
) -> xr.Dataset:
    if donors is None:
        replacement = constant_replacement(model, kind, tokens.shape, mean_z)
    else:
        replacement = run_clean(model, donors).z.__getitem__
    return sweep(model, tokens, run_clean(model, tokens), replacement, heads, progress)


def measure_ablations(
    shard: Shard,
    *,
    kind: str,
    heads: Heads | None,
    which: str,
    out: Path,
    provenance: dict[str, Any],
    keep_every: float = EVERY,
) -> None:
    """Ablate heads on a shard, and write what `ablate_heads` gives.

    Layers that are finished are kept beside the file until it is whole, and a job that was ended goes on from them
    (`selfrepair.files.kept`). What is repeated by plain runs is held against them as well.

    Args:
        shard: With thresholds; each head's repair by every component is summed over its top tokens.
        kind: "resample", "mean" or "zero".
        heads: The (layer, head) pairs; None means all.
        which: "all" tokens, or only each head's "top" tokens; the others' values are NaN then.
        out: HDF5 file: the variables of `sweep`, each head's top tokens being the selected ones.
        provenance: From `selfrepair.workflow.jobs.job`; without an identity nothing is kept.
        keep_every: Seconds between two times that finished layers are written.

    Raises:
        ValueError: Numbers are not those of plain runs; what was kept is removed then.
    """
    heads = check_heads(shard.model, heads)
    selected = shard.top_tokens(heads)
    repeats = shard.repeats(f"{kind} ablations", kind, heads, np.asarray(selected.any(-1)) | (which != "top"))
    job = {**provenance, "ablation": kind, "tokens": which, "heads": list(heads), "runs": _runs(shard.model)}
    with keep(out, job, keep_every) as kept:
        parts = []
        for batch in shard.batches(f"{kind} ablation", "head", len(heads)):
            of_batch = selected[:, batch.rows]
            part = sweep(
                shard.model,
                batch.tokens,
                batch.clean,
                batch.replacement(kind),
                heads,
                batch.progress,
                of_batch,
                which == "top",
                kept.batch(batch.rows),
            )
            try:
                prove_heads(repeats.proof, repeats.of(batch), {**arrays(part), "selected": of_batch})
            except ValueError:
                kept.remove()
                raise
            parts.append(part)
        attrs = {
            "ablation": kind,
            "tokens": which,
            "parallel_attention_mlp": int(shard.model.parallel),
            **({} if shard.model.logit_cap is None else {"logit_cap": shard.model.logit_cap}),
            **({"matrices": "bfloat16"} if shard.model.bfloat16 else {}),
            # Tells xarray which variables label the heads.
            "coordinates": "layer head_index",
            **repeats.proof.attrs(),
        }
        with write_hdf5(out, kind="ablations", provenance=provenance, attrs=attrs) as file:
            file.put_dataset(_join(parts), chunk={"head": 1})


def _runs(model: Model) -> dict[str, Any]:
    """What numbers may depend on to the bit, beside what a result records: where the model runs, and in what."""
    on_gpu = model.device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(model.device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype),
        "bfloat16": model.bfloat16,
    }


def mean_activation(model: Model, chunks: Sequence[Tensor]) -> Float[Tensor, "layer head d_head"]:
    """``z`` averaged over all prompts and positions of the given chunks of token ids [prompt, pos]."""
    total = torch.zeros(model.n_layers, model.n_heads, model.d_head, dtype=torch.float64, device=model.device)
    for chunk in chunks:
        z = run_clean(model, chunk).z
        for layer in range(model.n_layers):
            total[layer] += z[layer].sum((0, 1), dtype=torch.float64)
    return (total / sum(chunk.numel() for chunk in chunks)).to(model.dtype)


def _join(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Datasets of successive prompts as one."""
    return xr.concat(parts, dim="prompt", data_vars="minimal", coords="minimal", compat="override", join="override")


def _donor_ids(model: Model, donors: TokenIds | None, tokens: Tensor, kind: str) -> Tensor | None:
    if kind not in ABLATION_KINDS:
        raise ValueError(f"kind is {kind!r}; wanted one of {', '.join(ABLATION_KINDS)}")
    if kind != "resample":
        if donors is not None:
            raise ValueError(f"donors are given, but {kind!r} ablation takes none: leave them out, or use 'resample'")
        return None
    if donors is None:
        raise ValueError("kind 'resample' wants donors: the donor prompts' token ids, of the shape of tokens")
    ids = token_ids(model, donors, "donors")
    if ids.shape != tokens.shape:
        raise ValueError(
            f"donors have shape {tuple(ids.shape)}, tokens {tuple(tokens.shape)}: wanted one donor a prompt"
        )
    return ids
