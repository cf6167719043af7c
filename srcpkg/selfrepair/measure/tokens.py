"""Prompts: documents joined, cut into prompts of one length, in a seeded order, each with its donors."""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int

from selfrepair.files.hdf5 import open_hdf5, write_hdf5
from selfrepair.files.sealed import write_json
from selfrepair.snapshots.encoding import Encoder, beyond_vocabulary, check_vocabulary, model_vocabulary, read_encoder
from selfrepair.snapshots.manifest import verify_manifest

logger = logging.getLogger(__name__)


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

    Documents are read one after another, and memory grows by the prompts alone (8 bytes a token).

    Args:
        model_manifest: Of the model snapshot, whose tokenizer.json is run as it is.
        corpus_manifest: Of the corpus snapshot.
        out: HDF5 file: tokens [prompt, pos], donors [prompt, donor].
        prompt_length: Tokens a prompt, BOS among them.
        prompts_per_shard: Prompts a shard; a prompt's donors lie in its own shard.
        donors: Donors a prompt.
        seed: Of the documents' order and the prompts' order.
        provenance: From `selfrepair.workflow.jobs.job`.

    Raises:
        ValueError: The text does not fill one shard, or the tokenizer and the model do not fit: a token that the model
            has no embedding for, no EOS token, or a special token that the tokenizer reads out of the text.
    """
    verify_manifest(model_manifest, kind="model", weights=False)
    manifest = verify_manifest(corpus_manifest, kind="corpus")
    encoder = read_encoder(model_manifest.parent)
    vocab_size = model_vocabulary(model_manifest.parent)
    check_vocabulary(encoder, vocab_size, str(model_manifest.parent))
    if encoder.eos is None:
        raise ValueError(f"the tokenizer in {model_manifest.parent} has no EOS token to join documents with: set one")
    documents = _Documents(corpus_manifest.parent / "documents.jsonl")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(documents))
    rows = cut_prompts(
        _encoded(encoder, documents, order, vocab_size),
        length=prompt_length,
        bos_token_id=encoder.bos[1] if encoder.bos else None,
        eos_token_id=encoder.eos[1],
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
        chunk = {"prompt": prompts_per_shard}
        text = "token ids, BOS first where there is one"
        file.put("tokens", ("prompt", "pos"), prompts.tokens, chunk=chunk, description=text)
        text = "prompts whose activations replace this one's"
        file.put("donors", ("prompt", "donor"), prompts.donors, chunk=chunk, description=text)


def cut_prompts(
    documents: Iterable[Sequence[int] | np.ndarray], *, length: int, bos_token_id: int | None, eos_token_id: int
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
    body = length - (bos_token_id is not None)
    first = np.array([[] if bos_token_id is None else [bos_token_id]], np.int32)
    kept = [np.empty((0, length), np.int32)]
    seen: set[bytes] = set()
    rest = np.empty(0, np.int32)
    for number, document in enumerate(documents):
        joint = [eos_token_id] if number else []
        stream = np.concatenate([rest, np.array(joint, np.int32), np.asarray(document, np.int32)])
        count = len(stream) // body
        rows = _unseen(stream[: count * body].reshape(count, body), seen)
        kept.append(np.concatenate([first.repeat(len(rows), axis=0), rows], axis=1))
        rest = stream[count * body :].copy()
    return np.concatenate(kept)


def _unseen(rows: Int[np.ndarray, "prompt pos"], seen: set[bytes]) -> Int[np.ndarray, "kept pos"]:
    """The rows that did not come before. Of each, 16 bytes are kept: enough that no two of any text are the same."""
    new = []
    for number, row in enumerate(rows):
        digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            new.append(number)
    return rows if len(new) == len(rows) else rows[new]


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
    with open_hdf5(tokens, "tokens") as dataset:
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
    with open_hdf5(path, "tokens") as dataset:
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


class _Documents:
    """The documents of a snapshot by their number, read from the file one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        sizes = [0]
        with path.open("rb") as lines:
            sizes.extend(len(line) for line in lines)
        self._starts = np.cumsum(sizes)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, order: np.ndarray) -> Iterator[dict[str, str]]:
        """Some documents, each with `id` and `text`."""
        with self._path.open("rb") as file:
            for number in order:
                file.seek(self._starts[number])
                yield json.loads(file.read(self._starts[number + 1] - self._starts[number]))


def _encoded(
    encoder: Encoder, documents: _Documents, order: np.ndarray, vocab_size: int
) -> Iterator[Int[np.ndarray, " token"]]:
    """The ids of each document, after checking them; what the vocabulary does not hold is counted and named."""
    names: deque[str] = deque()
    unknown = lost = total = 0
    lost_symbols = bytes(sorted(encoder.lost_bytes))

    def texts() -> Iterator[str]:
        nonlocal lost
        for document in documents.read(order):
            names.append(document["id"])
            if lost_symbols:
                raw = document["text"].encode()
                lost += len(raw) - len(raw.translate(None, lost_symbols))
            yield document["text"]

    for ids in encoder.encode(texts()):
        _check_ids(encoder, ids, vocab_size, names.popleft())
        total += len(ids)
        unknown += 0 if encoder.unknown is None else int((ids == encoder.unknown).sum())
        yield ids
    if unknown:
        logger.warning("%d of %d tokens are the unknown token: the vocabulary does not hold that text", unknown, total)
    if lost:
        logger.warning(
            "%d bytes of the text are in no token: the vocabulary lacks bytes %s", lost, lost_symbols.hex(" ")
        )
    if encoder.may_lose:
        logger.warning("characters that the vocabulary lacks give no token: it has no unknown token, and no bytes")


def _check_ids(encoder: Encoder, ids: Int[np.ndarray, " token"], vocab_size: int, document: str) -> None:
    if not len(ids):
        return
    largest = int(ids.max())
    if largest >= vocab_size:
        token = encoder.tokenizer.id_to_token(largest)
        raise ValueError(f"document {document!r} holds {beyond_vocabulary(token, largest, vocab_size)}")
    read_out = np.isin(ids, list(encoder.special))
    if read_out.any():
        number = int(ids[read_out][0])
        raise ValueError(
            f"document {document!r} spells out {encoder.special[number]!r}, which the tokenizer reads as its special token "
            f"of id {number}: take it out of the text"
        )
