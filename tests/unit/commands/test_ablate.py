"""`selfrepair ablate`: the numbers of `ablate_heads` on one text, from any folder; and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import selfrepair
from selfrepair.commands.ablate import spelled
from selfrepair.commands.app import app
from selfrepair.model.texts import text_reader
from selfrepair.quantities import HEAD_TOKEN
from selfrepair.snapshots.encoding import byte_symbols

from tiny_model import WORDS, save_tiny_model

pytestmark = pytest.mark.filterwarnings("error")

TEXT, DONOR = "the cat sat .", "a dog ran . the"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ablate") / "results" / "snapshots" / "models" / "tiny"
    save_tiny_model(made)
    return made


def run(folder: Path, *more: str, **options: str) -> Any:
    given = {"model": str(folder), "text": TEXT, "head": "1.2", **options}
    arguments = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    return CliRunner().invoke(app, ["ablate", *arguments, *more], env={"COLUMNS": "80"})


def ids(text: str) -> np.ndarray:
    return np.array([[0, *(WORDS.index(word) for word in text.split())]])


@pytest.mark.parametrize(
    ("options", "kind", "donor"),
    [
        ({}, "mean", None),
        ({"kind": "zero"}, "zero", None),
        ({"donor_text": DONOR}, "resample", DONOR),
    ],
)
def test_numbers_are_those_of_ablate_heads(folder: Path, options: dict[str, str], kind: str, donor: str | None) -> None:
    found = json.loads(run(folder, "--head", "L0H3", "--json", **options).stdout)
    assert found["kind"] == kind
    tokens = ids(TEXT)
    donors = None if donor is None else ids(donor)[:, : tokens.shape[1]]
    model = selfrepair.load_model(folder)
    wanted = selfrepair.ablate_heads(model, tokens, donors, heads=[(1, 2), (0, 3)], kind=kind)
    assert [(of["layer"], of["head"]) for of in found["heads"]] == [(1, 2), (0, 3)]
    for row, of in enumerate(found["heads"]):
        assert [at["token"] for at in of["tokens"]] == ["<s>", *(f" {word}" for word in TEXT.split()[:-1])]
        assert [at["correct_token"].strip() for at in of["tokens"]] == TEXT.split()
        for name in set(HEAD_TOKEN) & set(wanted):
            np.testing.assert_allclose([at[name] for at in of["tokens"]], wanted[name][row, 0], rtol=1e-5, atol=1e-7)
        assert of["proof"]["ablations"] == 1
        assert of["proof"]["largest_difference"] < 1e-4


def test_what_is_printed_fits_and_says_kind_sum_and_proof(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parents[3])
    printed = run(Path("tiny")).stdout
    assert printed.startswith(
        "results/snapshots/models/tiny, mean ablation: the head writes its average over this text."
    )
    head = printed[printed.index("L1H2") :]
    assert all(len(line) <= 80 for line in head.partition("Proof")[0].splitlines())
    of_head = selfrepair.self_repair(folder, TEXT, "1.2")
    (total,) = [line.split() for line in head.splitlines() if line.startswith("sum")]
    wanted = [
        "direct_effect",
        "ablated_direct_effect",
        "logit_change",
        "self_repair",
        *(f"self_repair_from_{part}" for part in ("heads", "mlps", "layernorm")),
    ]
    assert total[1:] == [f"{of_head[name].sum() + 0.0:.3f}".replace("-0.000", "0.000") for name in wanted]
    assert "Proof: 1 of 1 ablations were repeated by plain runs of the whole model" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "2.0"}, "no head 2.0: {folder} has layers 0 to 1 of heads 0 to 3"),
        ({"head": "0.4"}, "no head 0.4: "),
        ({"head": "-1.0"}, "head is '-1.0'; wanted LAYER.HEAD, as 26.8 or L26H8, counted from 0"),
        ({"head": "1"}, "head is '1'; wanted LAYER.HEAD"),
        ({"model": "no"}, "--model no: neither it nor results/snapshots/models/no is a folder with a config.json"),
        ({"text": ""}, "--text holds a text of 1 tokens; wanted two or more in each"),
        ({"text": "the \udce4"}, "--text is not UTF-8: convert it (iconv -t UTF-8)"),
        ({"donor_text": "\udce4"}, "--donor-text is not UTF-8"),
        ({"donor_text": "the"}, "donor_text has 2 tokens, text 5: wanted a donor at least as long as the text"),
        ({"kind": "resample"}, "--kind resample wants a --donor-text: another text, as long or longer"),
        ({"kind": "mean", "donor_text": DONOR}, "--kind mean takes no --donor-text: leave one of the two out"),
        ({"kind": "noise"}, "--kind is 'noise': wanted one of resample, mean, zero"),
        ({"device": "abacus"}, "--device abacus is none that torch has here: leave it out for cpu"),
        ({"text": "the " * 40}, "prompts have 41 tokens, LlamaForCausalLM (llama) takes at most 32"),
    ],
)  # fmt: skip
def test_what_it_refuses(folder: Path, options: dict[str, str], said: str) -> None:
    done = run(folder, **options)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert done.stderr.startswith("Error: ")
    assert said.format(folder=folder) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_head_that_is_named_twice_is_refused(folder: Path) -> None:
    assert "a head is named twice" in run(folder, "--head", "L1H2").stderr


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_model_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / file).unlink()
    done = run(copy)
    assert done.exit_code == 2
    assert f"{copy} has no tokenizer ({file}): save it beside the model" in done.stderr


def test_a_model_with_nan_in_its_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    done = run(copy)
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\x00\xff" * 100])
def test_a_model_that_cannot_be_read_is_refused(folder: Path, tmp_path: Path, content: bytes) -> None:
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        copy = shutil.copytree(folder, tmp_path / file)
        (copy / file).write_bytes(content)
        done = run(copy)
        assert done.exit_code == 2, (file, done.output, done.exception)
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) <= 2


def test_bytes_of_a_part_of_a_character_are_seen(tmp_path: Path) -> None:
    symbols = byte_symbols()
    tokenizer = Tokenizer(BPE({symbol: number for number, symbol in enumerate(sorted(symbols))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    from tokenizers.decoders import ByteLevel as Decoder

    tokenizer.decoder = Decoder()
    reader = text_reader(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    ids = reader.ids("a é\n🦙", "text")[0]
    assert spelled(reader, ids) == ["a", " ", r"\xc3", "é", "\n", r"\xf0", r"\x9f", r"\xa6", "🦙"]


SHORT = """
import os, resource, sys
import selfrepair.measure.one_text, transformers.models.llama.modeling_llama
from selfrepair.commands.app import app
from selfrepair.model.texts import text_reader

held = 4096 * int(open("/proc/self/statm").read().split()[0])
for more in map(int, sys.argv[1].split()):
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_AS, (held + more * 10**6,) * 2)
        app(sys.argv[2:])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit no memory of a process")
def test_too_little_memory_is_said_in_a_line(tmp_path: Path) -> None:
    """Wherever it runs out: where weights are mapped, where they are copied, where the model runs."""
    save_tiny_model(tmp_path / "model", hidden_size=128, intermediate_size=16384)  # 50 MB
    limits = (10, 70, 800)
    command = [sys.executable, "-c", SHORT, " ".join(map(str, limits)), "ablate", "--model", str(tmp_path / "model")]
    command += ["--head", "0.1", "--text", TEXT, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    codes = [line for line in done.stdout.splitlines() if line in ("0", "1", "2")]
    assert codes == ["2", "2", "0"], done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(
            r"Error: out of memory: (more|another \d+ [MG]B) could not be had \(\d+ GB are here, and `ulimit -v` allows a "
            r"process [\d.]+ [MG]B\): take a shorter text or a smaller model, close other programs, or use a machine with more "
            "memory",
            line,
        ), line


def test_a_model_that_memory_cannot_hold_is_refused_before_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfrepair.commands.ablate.memory_mb", lambda: 0)
    monkeypatch.setattr("selfrepair.commands.ablate.FLOAT32", 4000)
    done = run(folder)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"Error: {folder} in float32 needs " in done.stderr
    assert done.stderr.endswith("MB of memory, 0 MB are here: use a smaller model, or a larger machine\n")
