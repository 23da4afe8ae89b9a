"""Attacks: frozen dataclasses that look for a harmful image near a given one; a folder is a family, a file an attack.

An attack is called with a model, images (b, c, *s) in [0, 1], their truth (b, n, *s) and one seed per image. It returns
an `Adversarial`: for each image the perturbed one, its harm and the size of its change. The seed of an image alone
decides which random numbers it gets, so its result does not depend on the other images of the batch.

Fields that many attacks share:
    ball: what may change and by how much at most; its `eps` is its radius, in the ball's own unit (for `linf` a
        share of the intensity range [0, 1], such as 4/255). Attacks of the least change (`minimal`) search all of
        [0, 1]: the ball says in which norm they measure, and changes larger than `eps` count as failures.
    objective: function of log-odds and truth that the attack makes large; one number per image, without unit.
    goal: mask that the attack wants, such as erase('liver'); None for any mask far from the truth.
    success: criterion that says when an image counts as adversarial; `by_pixels()` and `by_miou()` are such.
    steps: number of updates of the image, 1 or more; attacks that stop at success make fewer. Attacks described by a
        few numbers (`physical`) take 0 as well: that is a random draw, which is their control.
    step_size: length of one step, 0 or more, as a share of the ball: 0.25 moves at most a quarter of `eps`. In the
        `physical` family it is a length in the attack's own numbers, which range over [-1, 1]. An attack that
        measures it otherwise says so in its own docstring.
    momentum: weight of the last direction in the next one, 0 or more; 0 follows each gradient alone.
    random_start: True begins at a random point, False at the image itself.
    restarts: number of independent runs with other random numbers, 1 or more; each image keeps its worst.
    keep_worst: True returns each image's most harmful iterate, the untouched image among them; False the last iterate.
    queries: number of times that the model may be asked about each image, 1 or more; one forward pass asks once.
    searches: number of prices that are tried, 1 or more, each with `steps` steps of its own.
    attack: the attack that runs inside this one.
    attacks: the attacks that run inside this one, one after the other.
"""
