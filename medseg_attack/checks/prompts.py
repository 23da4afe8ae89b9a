"""Promptable models: the attacks that go with them, and with them alone."""

from medseg_attack.attacks.controls.worst_prompt import WorstPrompt
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import InputError
from medseg_attack.registry.parts import walk
from medseg_attack.types import Attack


def check_prompts(attack: Attack, label: str, prompt: str) -> None:
    """Refuses an attack that does not go with a model's prompts, or that needs some where there are none.

    Args:
        label: name of the attack in the error.
        prompt: how the model's prompts are drawn; "" of a model without prompts.

    Raises:
        InputError: it moves the anatomy, or shows the network smaller copies of images, which prompts would not follow;
            or it chooses prompts, and the model has none or another attack is around it.
    """
    chooses = any(isinstance(part, WorstPrompt) for part in walk(attack))
    if chooses and not isinstance(attack, WorstPrompt):
        raise InputError(
            f"expected worst_prompt by itself, got {label}; its result is a prompt, which no attack around it "
            "hands on: write --attack worst_prompt beside that attack"
        )
    if chooses and not prompt:
        raise InputError(
            f"expected a promptable model for {label}, got one without prompts; name own(..., prompt='box'), or drop "
            "that attack"
        )
    if prompt and attack.ball.moves_anatomy:
        raise InputError(
            f"expected attacks that leave anatomy where it is on a model with prompts, got {label}, after which the "
            "prompts would point to where an organ was; drop that attack"
        )
    if prompt and any(isinstance(part, PGD) and part.diversity for part in walk(attack)):
        raise InputError(
            f"expected gradients of images in their place on a model with prompts, got {label}, whose smaller copies "
            "the prompts would not follow; write diversity=0"
        )
