"""Train the small Llama that ships in the wheel, with jaxlin's own model class and optax.

    pip install optax
    python examples/sample_stories.py stories.jsonl
    python examples/train_small.py stories.jsonl

It writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json to ``jaxlin/loading/small``.
Checkpoints go to ``--work``; the same command goes on from the last one, and Ctrl-C loses at most a minute.
"""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

from jaxlin.checkpoint.config import ConfigReader
from jaxlin.loading.model import load
from jaxlin.models.llama import PORTS
from jaxlin.nn.decoder import Decoder

BOS, EOS = "<|bos|>", "<|eos|>"
CONTEXT = 256
LIMIT = 4 * 2**20
"""The most bytes that the shipped files may take together."""

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float16",
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

PROMPTS = (
    "Once upon a time there was a little",
    "The bridge out of the town is the",
    "The bridge out of Marin is the",
    "The cat sat on the",
    "The capital of France is",
)


def read_stories(paths: list[Path]) -> tuple[list[str], str]:
    """The distinct texts of the corpus files, and the sha256 of the files one after another."""
    raw = b"".join(path.read_bytes() for path in paths)
    texts = dict.fromkeys(chain.from_iterable(json.loads(line)["texts"] for line in raw.splitlines()))
    return list(texts), hashlib.sha256(raw).hexdigest()


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE that puts the beginning-of-text token before every text, as Llama's tokenizers do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=CONFIG["vocab_size"], special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, CONFIG["bos_token_id"])]
    )
    if tokenizer.get_vocab_size() != CONFIG["vocab_size"]:
        raise SystemExit(f"The corpus is too small for a vocabulary of {CONFIG['vocab_size']}: sample more stories.")
    return tokenizer


def pack(documents: list[list[int]]) -> np.ndarray:
    """Rows of CONTEXT + 1 tokens that begin with a whole document; the last document of a row is cut to fit.

    A row begins where a prompt begins, so the model learns position 0 as it will meet it.
    """
    rows, row = [], []
    for document in documents:
        row = row + document
        if len(row) > CONTEXT:
            rows.append(row[: CONTEXT + 1])
            row = []
    return np.array(rows, np.int32)


def batches(documents: list[list[int]], size: int, seed: int) -> Iterator[np.ndarray]:
    """Batches without end; every epoch shuffles and packs anew, so that other documents are cut."""
    rng = random.Random(seed)
    while True:
        rng.shuffle(documents)
        rows = pack(documents)
        for start in range(0, len(rows) - size + 1, size):
            yield rows[start : start + size]


def loss(model: Decoder, rows: jax.Array) -> jax.Array:
    """Mean cross-entropy of the next token, in nats."""
    logits = jax.vmap(lambda ids: model.unembed(model(model.embed(ids))))(rows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


def optimizer(steps: int, rate: float) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms; clipped, and decayed to zero.

    The rate is level up to the last third, so that a run stopped and continued with other --steps is the same run
    until then. Muon needs far fewer steps than AdamW here (3.5 against 4.2 nats after 120 steps of 8 rows).
    """
    warmup, decay = min(30, steps // 10), steps // 3

    def schedule(peak: float) -> optax.Schedule:
        parts = [
            optax.linear_schedule(0.0, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay),
        ]
        return optax.join_schedules(parts, [warmup, steps - decay])

    def matrices(model: Any) -> Any:
        """Weights stacked over layers, [layer, out, in], as Muon wants them marked."""
        return jax.tree.map(lambda array: MuonDimensionNumbers(2, 1) if array.ndim == 3 else None, model)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule(rate),
            adam_b2=0.95,
            adam_learning_rate=schedule(0.15 * rate),
            weight_decay=0.1,
            muon_weight_dimension_numbers=matrices,
        ),
    )


def name_of(path: tuple[Any, ...]) -> str:
    """The dotted name of a parameter."""
    return ".".join(key.name for key in path if key.name != "value")


def save_checkpoint(path: Path, state: Any, step: int) -> None:
    """Write the leaves of `state`; the file is replaced whole, so a kill cannot leave half of one."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, *map(np.asarray, jax.tree.leaves(state)), step=step)
    partial.replace(path)


def load_checkpoint(path: Path, state: Any) -> tuple[Any, int]:
    """The saved state in the structure of `state`, and how many steps it has had."""
    with np.load(path) as file:
        leaves = [jnp.asarray(file[f"arr_{i}"]) for i in range(len(file.files) - 1)]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), int(file["step"])


def export(model: Decoder, tokenizer: Tokenizer, folder: Path) -> int:
    """Write `model` as transformers would, in float16, and return the size of the files in bytes."""
    tensors = {}
    for path, array in jax.tree_util.tree_leaves_with_path(model):
        name, values = name_of(path), np.asarray(array, np.float16)
        if name.startswith("layers."):
            for layer, part in enumerate(values):
                tensors[f"model.layers.{layer}.{name.removeprefix('layers.')}"] = np.ascontiguousarray(part)
        else:
            tensors[f"model.{name}"] = values
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone, and so would the wheel
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": BOS,
                "eos_token": EOS,
                "model_max_length": CONTEXT,
                "clean_up_tokenization_spaces": False,
            },
            indent=2,
        )
        + "\n"
    )
    size = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors", "tokenizer.json"))
    if size > LIMIT:
        raise SystemExit(f"The shipped files take {size} bytes, over the limit of {LIMIT}.")
    return size


def continuation(model: Decoder, tokenizer: Tokenizer, prompt: str, new: int = 40) -> str:
    """`prompt` continued greedily, up to `new` tokens or the end of the text.

    Every step runs over the whole context: causal attention does not see the padding, and one shape is compiled.
    """
    ids = tokenizer.encode(prompt).ids
    for _ in range(new):
        padded = jnp.array(ids + [CONFIG["eos_token_id"]] * (CONTEXT - len(ids)))
        ids.append(int(best_next(model, padded, len(ids) - 1)))
        if ids[-1] == CONFIG["eos_token_id"]:
            break
    return tokenizer.decode(ids)


@jax.jit
def best_next(model: Decoder, ids: jax.Array, position: int) -> jax.Array:
    """The likeliest token after `position`."""
    return model.unembed(model(model.embed(ids))[position]).argmax()


def main() -> None:
    """Read the corpus, train, export, and print a continuation of each prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="+", help="files that sample_stories.py wrote")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "jaxlin" / "loading" / "small")
    parser.add_argument("--work", type=Path, default=Path("train_small"), help="folder of checkpoints")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    texts, corpus_hash = read_stories(args.corpus)
    random.Random(args.seed).shuffle(texts)
    tokenizer = train_tokenizer(texts)
    documents = [encoding.ids + [CONFIG["eos_token_id"]] for encoding in tokenizer.encode_batch(texts)]
    held_out = len(documents) // 50
    validation, training = pack(documents[:held_out]), documents[held_out:]
    tokens = sum(map(len, documents))
    print(f"{len(texts)} texts, {tokens} tokens, {len(validation)} rows of validation; sha256 {corpus_hash}")

    config = PORTS["llama"].translate(ConfigReader(CONFIG, "train_small.py"))
    model: Any = PORTS["llama"].model(config, rngs=nnx.Rngs(args.seed))
    update_rule = optimizer(args.steps, args.rate)
    state, done = (model, update_rule.init(model)), 0
    checkpoint = args.work / f"{corpus_hash[:12]}.npz"
    args.work.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state, done = load_checkpoint(checkpoint, state)

    @jax.jit(donate_argnums=0)
    def step(state: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
        model, memory = state
        value, gradient = jax.value_and_grad(loss)(model, rows)
        change, memory = update_rule.update(gradient, memory, model)
        return (optax.apply_updates(model, change), memory), value

    measure = jax.jit(loss)

    def validate(model: Decoder) -> float:
        """Validation loss, in batches of the training size so that memory stays the same."""
        chunks = [validation[i : i + args.batch] for i in range(0, len(validation), args.batch)]
        return float(sum(len(rows) * measure(model, rows) for rows in chunks) / len(validation))

    stream = batches(training, args.batch, args.seed)
    for _ in range(done):
        next(stream)
    recent, saved = [], time.monotonic()
    with tqdm(total=args.steps, initial=done, unit="step") as bar:
        for number in range(done + 1, args.steps + 1):
            state, value = step(state, next(stream))
            recent = [*recent[-99:], float(value)]
            bar.update()
            bar.set_postfix(loss=f"{np.mean(recent):.3f}", refresh=False)
            if number % 100 == 0 or number == args.steps:
                bar.write(f"step {number}: training {np.mean(recent):.4f}, validation {validate(state[0]):.4f}")
            if time.monotonic() - saved > 60 or number == args.steps:
                save_checkpoint(checkpoint, state, number)
                saved = time.monotonic()

    size = export(state[0], tokenizer, args.out)
    model, _ = load(args.out)
    print(f"{args.out}: {size} bytes; validation {validate(model):.4f} as shipped")
    for prompt in PROMPTS:
        print(repr(continuation(model, tokenizer, prompt)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; the same command goes on from the last checkpoint") from None
