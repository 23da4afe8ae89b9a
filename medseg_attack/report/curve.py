"""The curve over budgets."""

from pathlib import Path

import pandas as pd

from medseg_attack.report.figures import save


def curve(summary: pd.DataFrame, file: Path) -> None:
    """Mean Dice over the budget, a line per model, attack and loss with its interval; controls are dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    several = summary["model"].nunique() > 1
    for key, line in summary.groupby(["model", "attack", "loss"], sort=False):
        model, attack, loss = map(str, key)
        line = line.sort_values("eps")
        control = line["role"].iloc[0] == "control"
        start = pd.DataFrame({"eps": [0.0], "mean_adv": line["mean_clean"].head(1).to_numpy()})
        points = pd.concat([start, line[["eps", "mean_adv"]]])
        name = " ".join(filter(None, [model if several else "", attack, loss]))
        (drawn,) = axes.plot(
            points["eps"] * 255,
            points["mean_adv"],
            "--" if control else "-",
            marker="o",
            ms=3,
            label=name,
            color="0.4" if control and not several else None,
        )
        axes.fill_between(line["eps"] * 255, line["low"], line["high"], alpha=0.12, color=drawn.get_color(), lw=0)
    axes.set(xlabel="eps in 1/255 of the intensity window", ylabel="mean Dice", ylim=(0, 1))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, file)
