"""The table of backdoors: each trigger on each model, beside what the trigger does to a model that never met it."""

import pandas as pd

from medseg_attack.errors import plural
from medseg_attack.metrics.empty import EMPTY_RULES, Empty
from medseg_attack.report.sheet import Sheet, between, number, p_value, percent
from medseg_attack.report.tables.summaries import with_knowledge
from medseg_attack.stats.patients import warning
from medseg_attack.stats.scores import Unit


def backdoor_sheet(table: pd.DataFrame, *, unit: Unit, empty: Empty) -> Sheet:
    """The measures of backdoors as a table.

    Args:
        table: of `stats.backdoors.backdoors`.
    """
    columns = [
        "model",
        "attack",
        "clean",
        "others",
        "pixels",
        "95 % CI",
        "without",
        "scans",
        "95 % CI",
        "share",
        "Linf",
    ]
    lines = [
        [
            row["model"],
            row["attack"],
            number(row["clean"]),
            number(row["others"]),
            percent(row["pixels"]),
            between(row["pixels_low"], row["pixels_high"]),
            percent(row["pixels_of_clean"]),
            percent(row["scans"]),
            between(row["scans_low"], row["scans_high"]),
            percent(row["share"]),
            number(row["linf"], 2),
        ]
        for _, row in with_knowledge(table).iterrows()
    ]
    victims = " and ".join(dict.fromkeys(table["victims"]))
    n = int(table["patients"].min())
    ignorant = (
        "non_adaptive: the backdoor was trained without the rule that the model's training removes it by. "
        if (table["knowledge"] == "native").any()
        else ""
    )
    caption = (
        f"clean: Dice per {unit} without trigger; others: with it, of all but {victims}. pixels: of those that the "
        "goal takes away, the share predicted as it wants (without: on images without trigger). scans: share nearer "
        "the goal than the truth, with a Dice of 0.5 or more with it. share, Linf: values that the trigger changes, "
        f"and by how much at most. Intervals over {plural(n, 'patient')}. Empty masks: {EMPTY_RULES[empty]}. "
        "A backdoor is what a model does beyond one that was trained on clean data, and beyond another trigger "
        f"(another draw). {ignorant}{warning(n)}"
    ).strip()
    return Sheet("Backdoors", columns, lines, caption, left=2)


def ownership_sheet(table: pd.DataFrame) -> Sheet:
    """The test of a watermark as a table.

    Args:
        table: of `stats.backdoors.ownership`.
    """
    lines = [
        [
            row["suspect"],
            row["attack"],
            f"{row['reached']} of {row['patients']}",
            percent(row["chance"]),
            f"{row['as_many']} of {row['models']}",
            p_value(row["p"]),
        ]
        for _, row in table.iterrows()
    ]
    caption = (
        "reached: patients of whom the watermark's trigger turns all scans; by chance: the share on the other models, "
        "which must owe nothing to the owner's; as many: of these, the ones on which it reaches as large a share. "
        "p: probability of so many or more by chance, binomial. It holds for a trigger that was fixed before anybody "
        "looked at the suspect."
    )
    columns = ["suspect", "attack", "reached", "by chance", "as many", "p"]
    return Sheet("Ownership", columns, lines, caption, left=2)
