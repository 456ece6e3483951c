"""A model's tokenizer: which class loads it, and whose code it runs."""

import json
from dataclasses import replace

import pytest

from pipeline.data.documents.synthetic import tiny_tokenizer
from pipeline.text import encode_text, load_tokenizer


def test_a_tokenizer_without_a_class_of_its_own_is_what_transformers_would_load(tmp_path):
    """And is loaded without torch, for which a user who only checks a configuration would wait."""
    import subprocess
    import sys

    from transformers import AutoTokenizer

    from pipeline.data.documents.synthetic import tiny_model_config

    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model_config().save_pretrained(tmp_path)
    ours, theirs = load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours) is type(theirs) and ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map and ours.eos_token_id == theirs.eos_token_id
    text = "<problem> city Rex <section> Rex Paris . unheard-of"
    assert ours(text).input_ids == theirs(text).input_ids
    assert encode_text(ours, text) == encode_text(theirs, text)
    program = f"from pipeline.text import load_tokenizer; load_tokenizer({str(tmp_path)!r}); import sys; "
    program += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_tokenizer_with_a_class_of_its_own_is_loaded_by_it(tmp_path):
    from transformers import GPT2Tokenizer

    GPT2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]).save_pretrained(tmp_path)
    assert isinstance(load_tokenizer(str(tmp_path)), GPT2Tokenizer)


OWN_TOKENIZER = """
from transformers import PreTrainedTokenizerFast


class Mine(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_tokenizer_with_code_of_its_own_is_loaded_where_that_code_is_trusted(tmp_path, monkeypatch, family):
    from pipeline.data.documents.ruler_recipe import RulerRecipe

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    tiny_tokenizer().save_pretrained(folder)
    (folder / "mine.py").write_text(OWN_TOKENIZER)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "mine.Mine"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    assert type(load_tokenizer(str(folder), trust_remote_code=True)).__name__ == "Mine"
    recipe = RulerRecipe("niah_single_1", 0, 500, str(folder), 1, trust_remote_code=True)
    assert recipe.sample(0).document
    if family == "qwen2":  # a family of which transformers has a tokenizer
        assert type(load_tokenizer(str(folder))).__name__ != "Mine"
        return
    for load in (lambda: load_tokenizer(str(folder)), lambda: replace(recipe, trust_remote_code=False).sample(0)):
        with pytest.raises(ValueError, match="trust_remote_code"):
            load()
