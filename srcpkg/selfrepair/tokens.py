"""Prompts: documents joined, cut into prompts of one length, in a seeded order, each with its donors."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int

from selfrepair.sealed import write_json
from selfrepair.snapshots.manifest import verify_manifest
from selfrepair.storage import open_hdf5, write_hdf5

logger = logging.getLogger(__name__)

DOCUMENTS_A_CALL = 256


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length and their donors.

    Attributes:
        tokens: Token ids [prompt, pos].
        donors: Rows of ``tokens`` that are each prompt's donors [prompt, donor]; never its own.
    """

    tokens: Int[np.ndarray, "prompt pos"]
    donors: Int[np.ndarray, "prompt donor"]


def tokenize_corpus(
    *,
    model_manifest: Path,
    corpus_manifest: Path,
    out: Path,
    prompt_length: int,
    prompts_per_shard: int,
    donors: int,
    seed: int,
    provenance: dict[str, Any],
) -> None:
    """Cut a corpus snapshot into all the prompts that it holds, and write them with their donors.

    Args:
        model_manifest: Of the model snapshot, whose tokenizer is used.
        corpus_manifest: Of the corpus snapshot.
        out: HDF5 file: tokens [prompt, pos], donors [prompt, donor].
        prompt_length: Tokens a prompt, BOS among them.
        prompts_per_shard: Prompts a shard; a prompt's donors lie in its own shard.
        donors: Donors a prompt.
        seed: Of the documents' order and the prompts' order.
        provenance: From `selfrepair.jobs.job`.

    Raises:
        ValueError: The text does not fill one shard, or the tokenizer and the model do not fit.
    """
    from transformers import AutoTokenizer

    verify_manifest(model_manifest, kind="model", weights=False)
    manifest = verify_manifest(corpus_manifest, kind="corpus")
    tokenizer = AutoTokenizer.from_pretrained(model_manifest.parent, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {model_manifest.parent} has no EOS token to join documents with: set one")
    with (corpus_manifest.parent / "documents.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(documents))
    encoded = _encode(tokenizer, [documents[i] for i in order])
    rows = cut_prompts(
        encoded, length=prompt_length, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    # Neighbouring prompts come from one document; in a random order, any first n of them are a sample of the text.
    rows = rows[rng.permutation(len(rows))]
    n_prompts = len(rows) // prompts_per_shard * prompts_per_shard
    if n_prompts == 0:
        raise ValueError(
            f"the text ({manifest['source']}) holds {len(rows)} prompts of {prompt_length} tokens, fewer than one shard "
            f"of {prompts_per_shard}: add text, or lower prompts_per_shard or prompt_length"
        )
    prompts = Prompts(rows[:n_prompts], assign_donors(n_prompts, prompts_per_shard, donors))
    logger.info("%d documents hold %d prompts of %d tokens", len(documents), n_prompts, prompt_length)
    settings = {"prompts_per_shard": prompts_per_shard}
    with write_hdf5(out, kind="tokens", provenance=provenance, attrs=settings) as file:
        file.dims(prompt=n_prompts, pos=prompt_length, donor=donors)
        file.put("tokens", ("prompt", "pos"), prompts.tokens, description="token ids, BOS first where there is one")
        file.put(
            "donors", ("prompt", "donor"), prompts.donors, description="prompts whose activations replace this one's"
        )


def cut_prompts(
    documents: Iterable[list[int]], *, length: int, bos_token_id: int | None, eos_token_id: int
) -> Int[np.ndarray, "prompt pos"]:
    """Join documents by EOS and cut them into prompts with BOS first, as TransformerLens's tokenize_and_concatenate does.

    Args:
        documents: Token ids of each document, without special tokens.
        length: Tokens a prompt, BOS among them.
        bos_token_id: First token of every prompt; None where the tokenizer has none.
        eos_token_id: Stands between documents.

    Returns:
        The prompts [prompt, pos] in the order of the text, no prompt twice; the rest that fills no prompt is left out.
    """
    stream: list[int] = []
    for number, document in enumerate(documents):
        if number:
            stream.append(eos_token_id)
        stream.extend(document)
    body = length - (bos_token_id is not None)
    count = len(stream) // body
    rows = np.array(stream[: count * body], dtype=np.int32).reshape(count, body)
    _, first = np.unique(rows, axis=0, return_index=True)
    rows = rows[np.sort(first)]
    if bos_token_id is None:
        return rows
    return np.concatenate([np.full((len(rows), 1), bos_token_id, np.int32), rows], axis=1)


def assign_donors(n_prompts: int, prompts_per_shard: int, donors: int) -> Int[np.ndarray, "prompt donor"]:
    """The donors of each prompt: the next ones in its shard, in a ring, so never itself.

    Args:
        n_prompts: A multiple of ``prompts_per_shard``.
        prompts_per_shard: More than ``donors``.
        donors: Donors a prompt.

    Raises:
        ValueError: A shard holds too few prompts for that many donors.
    """
    if donors >= prompts_per_shard:
        raise ValueError(
            f"donors is {donors}, but a shard of {prompts_per_shard} prompts holds {prompts_per_shard - 1} others: "
            "raise prompts_per_shard or lower donors"
        )
    prompt = np.arange(n_prompts)[:, None]
    shard, within = np.divmod(prompt, prompts_per_shard)
    return (shard * prompts_per_shard + (within + 1 + np.arange(donors)) % prompts_per_shard).astype(np.int32)


def check_prompts(*, tokens: Path, out: Path, prompts: int) -> None:
    """Check that a tokens file holds the prompts asked for, and record how many there are.

    Args:
        tokens: Tokens file.
        out: JSON file with the number asked for and held.
        prompts: Prompts asked for.

    Raises:
        ValueError: The text holds fewer, with how many it holds.
    """
    with open_hdf5(tokens, "tokens", remake="tokenize_corpus") as dataset:
        held = dataset.sizes["prompt"]
        if prompts > held:
            raise ValueError(_too_many(prompts, dataset))
    write_json(out, {"asked": prompts, "held": held})


def read_shard(path: Path, prompts: slice) -> Prompts:
    """The prompts of one shard, with donors as rows of the shard.

    Args:
        path: Tokens file.
        prompts: The shard's prompts.

    Returns:
        Tokens [prompt, pos] and donors [prompt, donor], counted from the shard's first prompt.

    Raises:
        ValueError: The text holds fewer prompts, with how many it holds.
    """
    with open_hdf5(path, "tokens", remake="tokenize_corpus") as dataset:
        if prompts.stop > dataset.sizes["prompt"]:
            raise ValueError(_too_many(prompts.stop, dataset))
        part: xr.Dataset = dataset.isel(prompt=prompts).load()
    return Prompts(part["tokens"].values, part["donors"].values - prompts.start)


def _too_many(asked: int, tokens: xr.Dataset) -> str:
    held, length, shard = tokens.sizes["prompt"], tokens.sizes["pos"], tokens.attrs["prompts_per_shard"]
    return (
        f"the config asks for {asked} prompts of {length} tokens; the text holds {held} (whole shards of {shard}): "
        f"set tokens.prompts to at most {held}, or add text"
    )


def _encode(tokenizer: Any, documents: list[str]) -> Iterable[list[int]]:
    for start in range(0, len(documents), DOCUMENTS_A_CALL):
        batch = documents[start : start + DOCUMENTS_A_CALL]
        yield from tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
