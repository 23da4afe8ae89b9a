"""Defences, each beside its undefended twin: native and adaptive attacks, what transfers, and a verdict.

    python benchmarks/defences.py --data DATA --out OUT --minutes 40     # and again: it goes on
    python benchmarks/defences.py --out OUT --report                     # the tables of the rows that are finished

Several processes that are started alike share the rows. All trained networks start from one plain model, and the
undefended twin has as many further steps as they. All keep the epoch of the best Dice under the same short attack. The
first three rows are made with every seed, then the others, seed after seed.
"""

import argparse
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from medseg_attack.checks.rows.asking import check_rows
from medseg_attack.checks.rows.strength import check_knowledge
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.evaluation.opening import open_study
from medseg_attack.evaluation.studies.opened import RunOptions
from medseg_attack.evaluation.studies.running import run
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.study import Study
from medseg_attack.runtime import pick_device
from medseg_attack.stats.defences import worths
from medseg_attack.stats.patients import mean_score
from medseg_attack.stats.scores import pooled, scored
from medseg_attack.storage.files import is_checkpoint
from medseg_attack.storage.json_files import write_json
from medseg_attack.storage.locks import is_held, locked
from medseg_attack.training import loop
from medseg_attack.training.denoising import plan_denoiser, train_denoiser
from medseg_attack.training.options import Options, resolve

TWIN, START = "undefended", "start"
NETWORK = "unet_small(size=({size}, {size}))"
CHOICE = "pgd(linf(4/255), steps=5)"
SLICES = 30  # that are attacked
SUITE = {
    "FGSM": "fgsm(linf(4/255))",
    "strongest": "strongest(linf(4/255), gradients=60)",
    "L2": "pgd(l2(1.0), steps=20)",
}
UNIVERSAL = "uap(linf(4/255))"  # is fitted on the training patients, in runs of its own
HARDER = {"margin": "pgd(linf(4/255), objective=margin, steps=20)"}
AGAIN = " again"  # a native run that counts as an adaptive one, too
Key = tuple[str, int]  # the name of a row and its seed
Worth = dict[str, Any]  # a row of `stats.defences.worths`


class Defence(NamedTuple):
    """A row of the tables.

    Attributes:
        rules: of its training.
        around: the model around others, whose folders stand in braces; "": none.
        network: what is trained.
        share: of the further epochs that it is trained for; those with several steps on a batch need fewer.
        fresh: whether it starts from random weights, because those of the plain model do not fit; with all epochs.
        passes: that an attack which knows it averages; 1: the answer is not random.
        knowing: further attacks that know it.
        direction: what was published of it, if this is tried here again.
        beside: the row that the published direction is about.
    """

    rules: tuple[str, ...] = ()
    around: str = ""
    network: str = NETWORK
    share: float = 1.0
    fresh: bool = False
    passes: int = 1
    knowing: tuple[str, ...] = ()
    direction: str = ""
    beside: str = TWIN


ROWS = {
    TWIN: Defence(),
    "PGD-AT": Defence(("adversarial(attack=pgd(linf(4/255), steps=3))",)),
    "bit depth": Defence(around="guarded('{undefended}', [bit_depth(bits=3)])"),
    "JPEG": Defence(around="guarded('{undefended}', [jpeg(quality=75)])"),
    "median": Defence(
        around="guarded('{undefended}', [median(size=3)])",
        knowing=("bpda(strongest(linf(4/255), gradients=60), everywhere=True)",),
    ),
    "PDT": Defence(
        around="guarded('{undefended}', [pixel_deflection])",
        passes=2,
        direction="takes an attack out of an image (Prakash et al. 2018)",
    ),
    "Gaussian noise": Defence(("gaussian(sigma=0.1)",)),
    "Fast": Defence(("fast(ball=linf(4/255))",)),
    "bounded ReLU": Defence(
        network="bounded_relu(" + NETWORK + ", bound=1.0)",
        direction="stands attacks that the plain network does not (Zantedeschi et al. 2017)",
    ),
    "TRADES": Defence(("trades(ball=linf(4/255), steps=3)",)),
    "dual norm": Defence(
        ("dual_norm",),
        knowing=("both_norms(attack=strongest(linf(4/255), gradients=60))",),
        direction="keeps clean Dice and stands attacks (Han et al. 2021)",
    ),
    "alpha-mix": Defence(("adversarial(attack=fgsm(linf(4/255)), share=0.5)",)),
    "Free": Defence(("free(ball=linf(4/255))",), share=0.25),
    "gradient penalty": Defence(("gradient_penalty(weight=0.1)",)),
    "distillation": Defence(("distil",)),
    "PDT on PGD-AT": Defence(
        around="guarded('{PGD-AT}', [pixel_deflection])",
        passes=2,
        direction="stands more than PGD-AT alone (Rao et al. 2020)",
        beside="PGD-AT",
    ),
    "resize-pad": Defence(around="guarded('{undefended}', [resize_pad(largest=1.1)])", passes=4),
    "ensemble": Defence(around="ensemble('{undefended}', '{Gaussian noise}', '{alpha-mix}')"),
    "denoiser": Defence(around="guarded('{undefended}', [denoiser(file='{denoiser}', sigma=0.05)])"),
    "NLCE": Defence(
        network="nlce(" + NETWORK + ")",
        fresh=True,
        direction="stands attacks that the plain network does not (He et al. 2019)",
    ),
    "voting": Defence(around="voted('{undefended}', sigma=0.05, draws=4)", passes=2),
}


class Bench(NamedTuple):
    """A seed of the benchmark.

    Attributes:
        out: folder of all models and runs.
        size: side of the grid that networks see images on.
        epochs: of the model that all start from.
        further: epochs of the twin and of each defence after it.
    """

    out: Path
    data: Prepared
    seed: int
    size: int
    epochs: int
    further: int
    device: torch.device

    def folder(self, name: str) -> Path:
        return self.out / "models" / f"{name.replace(' ', '_')}-{self.seed}"

    def trained(self, name: str) -> Path:
        """The folder of a trained model, which is trained first where it is not there."""
        folder = self.folder(name)
        with locked(self.out / "training" / folder.name):
            if not is_checkpoint(folder):
                self.train(name, folder)
        return folder

    def train(self, name: str, folder: Path) -> None:
        if name == "denoiser":
            options = Options("denoiser", "mse", 8, 3e-3, seed=self.seed)
            deque(train_denoiser(plan_denoiser(options, self.data), self.data, folder, self.device), maxlen=0)
            return
        if name == START:
            options = Options(NETWORK.format(size=self.size), epochs=self.epochs, lr=2e-3, seed=self.seed)
        else:
            row = ROWS[name]
            epochs = max(round(row.share * self.further), 1) + self.epochs * row.fresh
            start, rate = ("", 2e-3) if row.fresh else (str(self.trained(START)), 1e-3)
            options = Options(row.network.format(size=self.size), epochs=epochs, lr=rate, seed=self.seed, init=start)
            options = Options(**vars(options) | {"defences": row.rules, "robust_by": CHOICE})
        deque(loop.train(resolve(options, self.data), self.data, folder, self.device), maxlen=0)

    def model(self, name: str) -> str:
        """The name of a row's model for `Study`, with all that it is made of trained."""
        if not ROWS[name].around:
            return str(self.trained(name))
        parts = [part for part in (*ROWS, "denoiser") if f"{{{part}}}" in ROWS[name].around]
        text = ROWS[name].around
        for part in parts:
            text = text.replace(f"{{{part}}}", str(self.trained(part)))
        return text

    def finish(self, name: str) -> None:
        """Attacks a row's model, and writes down that it is finished, after how many minutes."""
        file = self.out / "rows" / f"{name.replace(' ', '_')}-{self.seed}.json"
        claim = self.out / "claims" / file.stem
        if is_held(claim):
            return
        with locked(claim):
            if not file.is_file():
                self.measure(name, file)

    def measure(self, name: str, file: Path) -> None:
        began = time.monotonic()
        model = self.model(name)
        training = 0.0 if ROWS[name].around else card_of(Path(model))["seconds"] / 60
        hidden = self.attack(name, "native", model, list(SUITE.values()))
        known = [*SUITE.values(), *HARDER.values()] if hidden else [*HARDER.values(), *ROWS[name].knowing]
        self.attack(name, "native-universal", model, [UNIVERSAL])
        self.attack(name, "adaptive", model, averaged(known, ROWS[name].passes))
        if hidden:
            self.attack(name, "adaptive-universal", model, averaged([UNIVERSAL], ROWS[name].passes))
        if name != TWIN:
            self.attack(
                name, "transfer", model, [f"transfer(surrogate='{self.trained(TWIN)}', attack={SUITE['strongest']})"]
            )
        facts = {"name": name, "seed": self.seed, "hidden": hidden, "training": training}
        write_json(file, facts | {"minutes": (time.monotonic() - began) / 60})

    def attack(self, name: str, part: str, model: str, attacks: Sequence[str]) -> bool:
        """Runs a part of a row; whether the model says that attacks must know it."""
        native = part.startswith("native")
        study = Study(
            data=str(self.data.root),
            models=[model],
            attacks=list(attacks),
            limit=SLICES,
            seed=self.seed,
            native=native,
            control=part == "native",
        )
        opened = open_study(study, self.out, self.device, RunOptions(), self.runs(name) / part)
        deque(run(opened), maxlen=0)
        (ref,) = opened.models
        return ref.is_random or ref.blocks_gradient

    def runs(self, name: str) -> Path:
        return self.out / "runs" / f"{name.replace(' ', '_')}-{self.seed}"


def averaged(attacks: Sequence[str], passes: int) -> list[str]:
    """The attacks on the mean of so many passes, where the model answers at random (`passes` above 1)."""
    return [f"averaged({text}, passes={passes})" if passes > 1 else text for text in attacks]


def card_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return content


def finished(out: Path) -> list[dict[str, Any]]:
    """The facts of the finished rows, seed by seed in the order of `ROWS`."""
    facts = [json.loads(file.read_text(encoding="utf-8")) for file in (out / "rows").glob("*.json")]
    names = list(ROWS)
    return sorted(facts, key=lambda row: (row["seed"], names.index(row["name"])))


def rows_of(out: Path, row: dict[str, Any]) -> pd.DataFrame:
    """The rows of all runs of a model, each with its part; what need not know the defence counts as adaptive, too."""
    folder = out / "runs" / f"{row['name'].replace(' ', '_')}-{row['seed']}"
    parts = sorted(folder.iterdir(), key=lambda part: part.name != "native")  # whose clean scores are the model's
    rows = pd.concat(
        [read_runs([part], allow_partial=True).assign(part=part.name.split("-")[0]) for part in parts],
        ignore_index=True,
    )
    if not row["hidden"]:
        suite = rows[(rows["part"] == "native") & (rows["role"] == "attack")]
        rows = pd.concat([rows, suite.assign(part="adaptive", run=suite["run"] + AGAIN)], ignore_index=True)
    kind = rows["attack"].str.extract(r"(fgsm|strongest|uap|noise)", expand=False)
    kind = kind.replace({"fgsm": "FGSM", "uap": "UAP"})
    kind = kind.mask(rows["loss"] == "margin", "margin").mask(rows["ball"].str.startswith("l2"), "L2")
    kind = kind.mask(kind.eq("L2") & rows["role"].ne("attack"), "noise in L2").mask(
        rows["run"].str.endswith(AGAIN), AGAIN
    )
    return rows.assign(model=row["name"], label=row["name"], kind=kind)


def by_attack(rows: pd.DataFrame) -> pd.Series:
    """The mean Dice of a model under each attack, by part and kind; the clean one as ("", "clean")."""
    cases = scored(pooled(rows, "patient"), "one").merge(rows.drop_duplicates("run")[["run", "part", "kind"]], on="run")
    means = {key: mean_score(of_run, "dice_adv") for key, of_run in cases.groupby(["part", "kind"])}
    first = cases[cases["run"] == cases["run"].iloc[0]]
    return pd.Series({("", "clean"): mean_score(first, "dice_clean"), **means})


COLUMNS = {
    "clean": ("", "clean"),
    "noise": ("native", "noise"),
    "FGSM": ("native", "FGSM"),
    "strongest": ("native", "strongest"),
    "L2": ("native", "L2"),
    "UAP": ("native", "UAP"),
    "FGSM, knowing": ("adaptive", "FGSM"),
    "strongest, knowing": ("adaptive", "strongest"),
    "margin, knowing": ("adaptive", "margin"),
    "L2, knowing": ("adaptive", "L2"),
    "UAP, knowing": ("adaptive", "UAP"),
    "transfer": ("transfer", "strongest"),
}


def report(out: Path) -> str:
    """The tables of the finished rows in Markdown, the checks of the claims, and what was not run."""
    rows = finished(out)
    if not rows:
        return "No row is finished."
    tables = {(row["name"], row["seed"]): rows_of(out, row) for row in rows}
    worth = {key: _worth(tables, key, TWIN) for key in tables}
    first = next(iter(tables.values()))
    n_slices, n_patients = first["case"].nunique(), first["group"].nunique()
    parts = [
        f"{n_slices} slices of {n_patients} unseen patients, Dice per patient; mean over organs and patients.",
        _markdown(_attack_lines(out, rows, tables)),
        _markdown(_worth_lines(rows, worth)),
        "\n".join(f"- {line}" for line in _claims(rows, tables, worth)),
        _markdown(_direction_lines(tables)),
        _missing(rows),
    ]
    return "\n\n".join(filter(None, parts))


def _worth(tables: Mapping[Key, pd.DataFrame], key: Key, twin: str) -> Worth:
    """What a model keeps in the balls of L-infinity, beside its twin: the row of `worths` of the mean over organs."""
    names = dict.fromkeys((twin, key[0]))
    rows = pd.concat([tables[name, key[1]] for name in names], ignore_index=True)
    table = worths(rows[rows["ball"].str.startswith("linf")], twin, {}, unit="patient", empty="one")
    row = table[(table["organ"] == "mean") & (table["model"] == key[0])].iloc[0]
    return {str(name): value for name, value in row.items()}


def _attack_lines(out: Path, rows: Sequence[dict[str, Any]], tables: Mapping[Key, pd.DataFrame]) -> Iterator[list[str]]:
    yield ["model", "seed", *COLUMNS, "training, minutes", "cost of a step"]
    for row in rows:
        means = by_attack(tables[row["name"], row["seed"]])
        cells = [f"{means[key]:.3f}" if key in means.index else "" for key in COLUMNS.values()]
        folder = out / "models" / f"{row['name'].replace(' ', '_')}-{row['seed']}"
        cost = f"{card_of(folder).get('cost', 1.0):.1f}" if is_checkpoint(folder) else ""
        yield [row["name"], str(row["seed"]), *cells, f"{row['training']:.1f}" if cost else "", cost]


def _worth_lines(rows: Sequence[dict[str, Any]], worth: Mapping[Key, Worth]) -> Iterator[list[str]]:
    yield [
        "model",
        "seed",
        "clean",
        "native",
        "adaptive",
        "worst",
        "worst, to the twin",
        "clean, to the twin",
        "verdict",
    ]
    for row in rows:
        each = worth[row["name"], row["seed"]]
        levels = [f"{each[kind]:.3f} [{each[f'{kind}_low']:.2f}, {each[f'{kind}_high']:.2f}]" for kind in LEVELS]
        to_twin = ["", "", ""]
        if row["name"] != TWIN:
            to_twin = [_difference(each, "to_twin"), _difference(each, "clean_to_twin"), str(each["verdict"])]
        yield [row["name"], str(row["seed"]), *levels, *to_twin]


LEVELS = ("clean", "native", "adaptive", "worst")


def _difference(row: Worth, name: str) -> str:
    return f"{row[name]:+.3f} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"


def _claims(
    rows: Sequence[dict[str, Any]], tables: Mapping[Key, pd.DataFrame], worth: Mapping[Key, Worth]
) -> Iterator[str]:
    """A sentence on each claim and seed, as far as its rows are finished."""
    for name, seed in ((row["name"], row["seed"]) for row in rows):
        each, means = worth[name, seed], by_attack(tables[name, seed])
        if name == "PGD-AT":
            twin = by_attack(tables[TWIN, seed])
            gain = means["native", "strongest"] - twin["native", "strongest"]
            cost = twin["", "clean"] - means["", "clean"]
            answer = "yes" if gain >= 0.25 and cost <= 0.1 else "no"
            yield (
                f"PGD-AT keeps 0.25 more than its twin under `strongest` at a clean cost of at most 0.10, seed {seed}: "
                f"**{answer}**, {gain:+.3f} at a cost of {cost:.3f}. Under the worst attack of each patient: "
                f"{_difference(each, 'to_twin')}."
            )
        if name == "bit depth":
            flags = check_rows(tables[name, seed], unit="patient", empty="one", checks=[check_knowledge])
            codes = ", ".join(sorted({flag.code for flag in flags})) or "no flag"
            answer = "yes" if each["hidden_low"] > 0 else "no"
            yield (
                f"The native number of bit depth is false, seed {seed}: **{answer}**, {each['native']:.3f} native, "
                f"{each['adaptive']:.3f} adaptive, {_difference(each, 'hidden')} between native and worst; {codes}."
            )


def _direction_lines(tables: Mapping[Key, pd.DataFrame]) -> Iterator[list[str]]:
    yield ["published", "seed", "beside", "native", "worst", "clean", "verdict"]
    for name, seed in tables:
        row = ROWS[name]
        if row.direction and (row.beside, seed) in tables:
            each = _worth(tables, (name, seed), row.beside)
            numbers = [_difference(each, kind) for kind in ("native_to_twin", "to_twin", "clean_to_twin")]
            yield [f"{name}: {row.direction}", str(seed), row.beside, *numbers, str(each["verdict"])]


def _missing(rows: Sequence[dict[str, Any]]) -> str:
    """What was not run, by seed."""
    lines = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        left = [name for name in ROWS if name not in [row["name"] for row in rows if row["seed"] == seed]]
        lines.append(f"Not run with seed {seed}: {', '.join(left) or 'nothing'}.")
    return " ".join(lines)


def _markdown(lines: Iterator[list[str]]) -> str:
    head, *rows = lines
    if not rows:
        return ""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="prepared slices, such as of ACDC")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128, help="side of the grid that the networks see images on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=30, help="of the plain model that the others start from")
    parser.add_argument("--further", type=int, default=12, help="epochs of the twin and of each defence after it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", action="append", choices=list(ROWS), help="row that is made (all); repeatable")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no row is begun after so many in all")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if not args.report:
        torch.set_num_threads(1)
        device = pick_device(args.device)
        data = open_prepared(args.data)
        names = [name for name in ROWS if name in (args.only or ROWS)]
        order = [(seed, name) for part in (names[:3], names[3:]) for seed in args.seeds for name in part]
        for seed, name in order:
            if sum(row["minutes"] for row in finished(args.out)) >= args.minutes:
                break
            Bench(args.out.resolve(), data, seed, args.size, args.epochs, args.further, device).finish(name)
    print(report(args.out))


if __name__ == "__main__":
    main()
