"""The classes that the name of an organ stands for."""

from medseg_attack.errors import InputError, nearest
from medseg_attack.types import Task


def organ_classes(task: Task, organ: str, user: str) -> list[int]:
    """The indices of the classes that an option names, among those that tables report.

    Args:
        organ: name of a class; "" is all organs.
        user: name of the attack, goal or detector with that option, for the sentence of a refusal.

    Raises:
        InputError: the task has no such organ.
    """
    organs = [task.classes[k] for k in task.scored]
    if organ and organ not in organs:
        raise InputError(f"expected {user} to name an organ of {task.name}, got {organ!r}; {nearest(organ, organs)}")
    return [task.classes.index(organ)] if organ else list(task.scored)
