"""Chat templates: what transformers writes, within limits on what a template of a stranger may do."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from chat_templates import TEMPLATES
from command import jaxlin_command
from tokenizer_files import BYTES, read, template

from jaxlin.checkpoint import open_checkpoint
from jaxlin.common.errors import TokenizerError
from jaxlin.loading.model import SMALL
from jaxlin.tokenizer import Tokenizer
from jaxlin.tokenizer.chat import checked_messages

MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]", "<start_of_turn>"]
ASKED = [{"role": "user", "content": " How far is the moon? \n"}]
CONVERSATIONS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    (ASKED, {}),
    ([{"role": "system", "content": 'Be kind, don\'t "quote".'}, *ASKED], {}),
    (
        [
            *ASKED,
            {"role": "assistant", "content": "<think>\nlong way\n</think>\n\nFar <&> ü 月."},
            {"role": "user", "content": "And the sun?"},
        ],
        {"enable_thinking": False},
    ),
    ([*ASKED, {"role": "assistant", "content": "Far.", "reasoning": "I know it."}], {}),
    (ASKED, {"tools": [{"type": "function", "function": {"name": "look", "description": "<é>"}}]}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with BOS before each text, and the marks of templates."""
    folder = tmp_path_factory.mktemp("chat")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(sorted(BYTES.alphabet()))}, []))
    backend.pre_tokenizer, backend.decoder = BYTES(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(MARKS)
    spec = {**json.loads(backend.to_str()), "post_processor": template("<s>", 256)}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def with_template(folder: Path, stored: Any) -> Tokenizer:
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": stored}))
    return read(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_of_families(name: str, folder: Path) -> None:
    """The text and the ids are those of transformers, or both refuse."""
    ours = with_template(folder, TEMPLATES[name])
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    for messages, variables in CONVERSATIONS:
        variables = {**variables, "add_generation_prompt": True}
        text = reference.apply_chat_template(messages, tokenize=False, **variables)
        assert ours.chat_text(messages, **variables) == text
    ids = reference.apply_chat_template(messages, return_dict=False, **variables)
    assert ours.chat(messages, **variables) == ids
    assert ids.count(ours.bos_id) == TEMPLATES[name].count("bos_token")


def test_an_exception_of_the_template(folder: Path) -> None:
    tokenizer = with_template(folder, TEMPLATES["Gemma 3"])
    with pytest.raises(TokenizerError, match="The user and the assistant take turns"):
        tokenizer.chat([*ASKED, *ASKED])


def test_a_date_that_is_given(folder: Path) -> None:
    tokenizer = with_template(folder, TEMPLATES["Llama 3"])
    assert "Today is 26 Jul 2024\n" in tokenizer.chat_text(ASKED, date_string="26 Jul 2024")
    assert f"Today is {time.strftime('%d %b %Y')}\n" in tokenizer.chat_text(ASKED)


def test_several_templates(folder: Path) -> None:
    """By name; tool_use where tools are given; chat_template.jinja in place of them."""
    named = [{"name": name, "template": f"{name}: {{{{ messages[0].content }}}}"} for name in ("default", "tool_use")]
    tokenizer = with_template(folder, named)
    assert tokenizer.chat_text(ASKED).startswith("default: How") is False
    assert tokenizer.chat_text(ASKED).startswith("default:  How")
    assert tokenizer.chat_text(ASKED, tools=[]).startswith("tool_use:")
    assert tokenizer.chat_text(ASKED, template="tool_use").startswith("tool_use:")
    with pytest.raises(TokenizerError, match="expected one of 'default', 'tool_use'; found 'rag'"):
        tokenizer.chat(ASKED, template="rag")
    (folder / "chat_template.jinja").write_text("alone")
    try:
        assert read(folder).chat_text(ASKED) == "alone"
    finally:
        (folder / "chat_template.jinja").unlink()


def test_gguf(smollm2_gguf: Path) -> None:
    """The template in the metadata, as transformers applies it."""
    tokenizer = Tokenizer.from_gguf(open_checkpoint(smollm2_gguf).config)
    reference = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    expected = reference.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert tokenizer.chat(ASKED, add_generation_prompt=True) == expected


HOSTILE = [
    ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
    ("{% for i in range(10 ** 9) %}x{% endfor %}", "[Rr]ange"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "seconds of work"),
    ("{{ 'x' * 10 ** 10 }}", "MemoryError|process for it died"),
    ("{{ 'x' * 10 ** 8 }}", "a text of|process for it died|MemoryError"),
    (
        "{% set n = namespace(a=[0]) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
        "MemoryError|process for it died",
    ),
    ("{{ 9 ** (9 ** 9) }}", "seconds of work|process for it died|MemoryError|digits"),
    ("{% include '/etc/passwd' %}", "no loader"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Recursion"),
    ("{{ lipsum.__globals__['os'] }}", "unsafe|undefined"),
    ("{{ messages.append(1) }}", "unsafe|not safe"),
    ("{% if %}", "TemplateSyntaxError"),
    ("{{" + "(" * 5000, "found"),
]


@pytest.mark.parametrize(("hostile", "message"), HOSTILE)
def test_what_a_template_may_not_do(hostile: str, message: str, folder: Path) -> None:
    tokenizer = with_template(folder, hostile)
    with pytest.raises(TokenizerError, match=message):
        tokenizer.chat_text(ASKED)


def test_what_is_no_chat(folder: Path) -> None:
    for messages in ("hello", [], {}, ["a"], [{"content": "a"}], [{"role": 1}]):
        with pytest.raises(TokenizerError, match="Chat: expected"):
            checked_messages(messages)
    with pytest.raises(TokenizerError, match="Chat: expected texts, numbers"):
        with_template(folder, "x").chat([{"role": "user", "content": object()}])
    for stored in (3, {"a": 1}, [1], [{"name": "x"}]):
        with pytest.raises(TokenizerError, match="chat_template: expected"):
            with_template(folder, stored).chat(ASKED)
    with pytest.raises(TokenizerError, match="expected a chat template"):
        with_template(folder, None).chat(ASKED)


def test_on_the_shell(tmp_path: Path) -> None:
    """`--chat` explains the answer to what a user says; a model without a template says that it has none."""
    for file in SMALL.iterdir():
        if file.name.endswith((".json", ".safetensors")):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}Q: {{ messages[0].content }}")
    options = ("--chat", "--spectrum", "none", "--json")
    done = jaxlin_command("explain", "The cat", "--model", str(tmp_path), *options)
    assert done.returncode == 0, done.stderr
    tokens = json.loads(done.stdout)["tokens"]
    assert "".join(tokens) == "<|bos|>Q: The cat"
    refused = jaxlin_command("explain", "The cat", *options)
    assert refused.returncode == 2
    assert "expected a chat template" in refused.stderr
