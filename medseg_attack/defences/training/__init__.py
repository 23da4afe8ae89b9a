"""Training: rules that `medattack train` follows instead of the loss on the images as they are.

A training defence is a frozen dataclass below `TrainingDefence`. Its fields are its options. Several defences form a
chain: each computes its loss through `step.loss`, which is that of the defences behind it.

Fields that several of them share:
    attack: the attack that makes training images harder: any registered one that needs no fit. It runs in eval mode
        on the augmented image; a millimetre of a physical attack is then a pixel of the training grid.
    ball: what a perturbation of training images may change, and by how much.
    share: weight of the perturbed images in the loss, in [0, 1]; the clean ones have the rest.
    weight: weight of the term that is added to the loss, 0 or more.
"""
