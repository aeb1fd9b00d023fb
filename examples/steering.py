"""Steer the small model in the wheel towards a word, and draw dose curves as text.

    python examples/steering.py
    python examples/steering.py --word sea --phrase "The boat was out on the sea" --layer 2

Four operators on the same prompts: the word's own direction, the difference between prompts with and without the
word, the paper's equation 16, and what the paper's code computes instead. A strength means something else for each;
what can be compared is how often the word appears, and at what cost (KL divergence from the unedited model,
repetition).
"""

import argparse

import jaxlin
from jaxlin.steering import add, dose_curve, mean_difference, paper_code, paper_equation, token_direction

PROMPTS = [
    "Once upon a time there was a little",
    "The children went to the",
    "One day, the old man",
    "In the morning the girl",
    "My friend and I like to",
    "The house stood near the",
]
FRAMES = ["The {}", "We saw the {}", "I love the {}", "They talked about the {}"]


def main() -> None:
    """Print a dose curve for each operator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a hub id, directory or .gguf file; the small model unless given")
    parser.add_argument("--word", default="cat")
    parser.add_argument("--other", default="house", help="the word that replaces it in prompts without it")
    parser.add_argument("--phrase", default="The cat sat on the cat", help="the prompt whose local linear map steers")
    parser.add_argument("--layer", type=int, default=1)
    args = parser.parse_args()

    model, tokenizer = jaxlin.load(args.model)
    site, phrase = ("resid_post", args.layer), model.embed(tokenizer.encode(args.phrase))
    with_word, without = (
        [tokenizer.encode(frame.format(word)) for frame in FRAMES] for word in (args.word, args.other)
    )
    operators = {
        "the word's direction": (
            add(site, token_direction(model, tokenizer.to_single_token(f" {args.word}"))),
            [0.0, 0.15, 0.3, 0.45, 0.6],
        ),
        "the difference of prompts": (
            add(site, mean_difference(model, with_word, without, site)),
            [0.0, 0.25, 0.5, 0.75, 1.0],
        ),
        "the paper's equation 16": (paper_equation(model, phrase, args.layer), [0.0, 0.25, 0.5, 0.75, 1.0]),
        # The paper's code edits the input of the block before the layer it names.
        "the paper's code": (paper_code(model, phrase, args.layer + 1), [0.0, 0.5, 1.0, 1.5, 2.0]),
    }
    for name, (edit, strengths) in operators.items():
        curve = dose_curve(model, tokenizer, edit, PROMPTS, args.word, strengths, max_new_tokens=24)
        print(f"\n{name}, at {edit.site}, positions: {edit.where}")
        print(f"{'strength':>8}  {'texts with ' + repr(args.word):20}{'p':>7}{'KL':>7}{'repeats':>9}  first text")
        for i, strength in enumerate(curve.strengths):
            bar = "█" * round(12 * curve.target_rate[i])
            row = f"{strength:8.2f}  {bar:12} {curve.target_rate[i]:6.0%} {curve.target_probability[i]:7.3f}"
            text = " ".join(curve.texts[i][0].split())
            print(f"{row}{curve.kl[i]:7.2f}{curve.repetition[i]:9.0%}  {text[:60]}")


if __name__ == "__main__":
    main()
