"""What the three stages give each width of a translation model: the messages of Django, English to German."""

from __future__ import annotations

from typing import Any

import torch

from repertory.data.translation import load_translation
from repertory.data.translation_vocabulary import BytePairs, encode_pairs
from repertory.evidence import Arm, ArmResult, Context, Experiment, Scale
from repertory.systems.scalable_transformers.crops import Crop
from repertory.systems.scalable_transformers.translation_model import ScalableTransformer
from repertory.systems.scalable_transformers.translation_scores import bleu, token_accuracy
from repertory.systems.scalable_transformers.translation_search import translate
from repertory.systems.scalable_transformers.translation_training import (
    TranslationSettings,
    fit_translation,
    word_batches,
)

HEADS = (4, 3, 2, 1)
WIDTHS = {"large": Crop(4), "medium": Crop(2), "small": Crop(1)}
PASSES = (1, 3, 3)  # of a batch through a step of each stage: one width; the widest, one at random, the narrowest


def _run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
    """Spend the same number of passes on the stages in the arm's shares, and judge each width on held-out messages."""
    used = {**scale.settings, **arm.settings}
    text = load_translation("django-en-de", context.roots.get("django"))
    vocabulary = BytePairs.train([*text.train.source, *text.train.target], used["tokens"])
    train, val = (
        encode_pairs(part, vocabulary, used["max_length"], too_long="skip") for part in (text.train, text.val)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ScalableTransformer(
            len(vocabulary),
            embed_dim=used["width"],
            depth=used["depth"],
            num_heads=HEADS[0],
            drop=used["drop"],
            max_length=used["max_length"],
        )
    first, second, third = (int(used["passes"] * share) // cost for share, cost in zip(used["shares"], PASSES))
    settings = TranslationSettings(
        steps=(first, second, third),
        max_tokens=used["max_tokens"],
        lr=used["lr"],
        warmup=used["warmup"],
        heads=HEADS,
        seed=seed,
        beam=used["beam"],
        log_steps=20,
    )
    run = fit_translation(model, train, out=context.out, settings=settings, resume=True, progress=context.progress)
    if run.interrupted:
        raise KeyboardInterrupt  # the run goes on from its checkpoint when it is started again
    metrics: dict[str, float] = {}
    short = [pair for pair in text.val if max(map(len, vocabulary.encode(pair))) <= used["max_length"]]
    for name, crop in WIDTHS.items():
        metrics[f"accuracy_{name}"] = 100 * token_accuracy(run.model, word_batches(val), crop)
        found = translate(run.model, [source for source, _ in short], vocabulary, crop, beam=used["beam"])
        metrics[f"bleu_{name}"] = bleu(found, [target for _, target in short])
    for kind in ("accuracy", "bleu"):
        metrics[f"{kind}_mean"] = sum(metrics[f"{kind}_{name}"] for name in WIDTHS) / len(WIDTHS)
    return ArmResult(metrics, run.curves, run.pairs, run.steps, used)


_RECIPE: dict[str, Any] = {
    "tokens": 800,
    "width": 64,
    "depth": 1,
    "drop": 0.1,
    "max_length": 48,
    "max_tokens": 768,
    "lr": 4e-3,
    "warmup": 40,
    "beam": 4,
    "passes": 1_440,
}

TRANSLATION = Experiment(
    system="scalable_transformers",
    question="Do words and whole sentences of the widest model help the narrower ones to translate?",
    metric="accuracy_mean",
    unit="%",
    higher_is_better=True,
    baseline="stage_1",
    method="stages_1_2_3",
    arms=(
        Arm("stage_1", "sampled widths, true targets", {"shares": (1.0, 0.0, 0.0)}),
        Arm("stages_1_2", "then words of the widest", {"shares": (0.5, 0.5, 0.0)}),
        Arm("stages_1_2_3", "then its sentences too", {"shares": (0.5, 0.25, 0.25)}),
    ),
    scales={
        "smoke": Scale(2, 0, {**_RECIPE, "width": 16, "passes": 48}),
        "small": Scale(5, 0, _RECIPE),
    },
    run=_run,
    data="messages of Django's German catalogues (real, some hundred pairs); three widths, their mean accuracy",
)
