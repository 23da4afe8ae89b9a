"""Every attack with few passes, and cases of 8 bits that it runs on."""

import torch

from medseg_attack import registry
from medseg_attack.types import Attack, Case, Storage, Window

EPS = 8 / 255
# replay asks no model; vafa_hanif2023 stretches what it shows the model, so that no image is dark
ATTACKS = [name for name in registry.names("attack") if name not in ("replay", "vafa_hanif2023", "worst_prompt")]
SPECS = {
    "boundary": "boundary(queries=20)",
    "fgsm_wang2024": "fgsm_wang2024(channels=1)",
    "spsa": "spsa(queries=20, directions=2, grid=6)",
    "transfer": "transfer(surrogate=oracle)",
    "zoo": "zoo(queries=20, coordinates=4)",
}
FEW = {"steps": 3, "searches": 2, "queries": 12}
DARK = "case 1"  # a quarter as bright as the others


def short(name: str) -> Attack:
    """The attack of this name at `EPS`, with few passes."""
    attack: Attack = registry.build(SPECS.get(name, name), "attack", {} if name in SPECS else FEW)
    result: Attack = registry.with_eps(attack, EPS)
    return result


def cases() -> list[Case]:
    rng = torch.Generator().manual_seed(8)
    result = []
    for n in range(3):
        stored = torch.randint(60, 250, (1, 12, 10), generator=rng).to(torch.uint8)
        stored = stored // 4 if f"case {n}" == DARK else stored
        image = (stored.double() / 255).float()
        target = torch.rand(2, 12, 10, generator=rng) < 0.4
        storage = Storage(stored)
        name = f"case {n}"
        result.append(Case(name, name, f"p{n}", image, target, (1.0, 1.0), Window(0.0, 255.0), storage=storage))
    return result
