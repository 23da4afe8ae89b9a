"""Promptable models: which attacks they can be given."""

from medseg_attack.errors import InputError
from medseg_attack.types import Attack


def check_prompts(attack: Attack, label: str, prompt: str) -> None:
    """Refuses an attack that does not go with a model's prompts.

    Args:
        label: name of the attack in the error.
        prompt: how the model's prompts are drawn; "" of a model without prompts.

    Raises:
        InputError: it moves the anatomy, which the prompts of a promptable model would not follow.
    """
    if prompt and attack.ball.moves_anatomy:
        raise InputError(
            f"expected attacks that leave anatomy where it is on a model with prompts, got {label}, after which the "
            "prompts would point to where an organ was; drop that attack"
        )
