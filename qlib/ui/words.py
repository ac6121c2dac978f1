"""The words of the screens: what a term means, in one or two plain sentences."""

WORDS = {
    "float model": "The reference: the network as it was trained, in 32-bit floating point.",
    "simulated": (
        "Values are rounded exactly as in integers, but the arithmetic still runs in floating "
        "point. Accuracy and size are therefore true; there is no speed-up to be seen here."
    ),
    "bits": (
        "How many bits store one number. With b bits there are at most 2ᵇ different values. "
        "W4A8 means: weights 4 bits, activations 8 bits."
    ),
    "top-1": "Share of held-out test images whose most probable class is the right one.",
    "interval": (
        "With few test images, accuracy is uncertain. The 95 % interval (Wilson) says where the "
        "accuracy on endless images would plausibly lie. Methods whose intervals overlap are not "
        "told apart by these images."
    ),
    "nearest": (
        "Every number goes to the nearest level of the grid; nothing is learned. The baseline that "
        "other methods must beat."
    ),
    "agreement": (
        "Share of test images for which the quantized and the float model give the same answer, "
        "right or wrong. It separates methods that accuracy cannot."
    ),
    "lost": (
        "Lost: the float model was right and the quantized model is wrong. Gained: the other way "
        "round."
    ),
    "size": (
        "Bits of all weights, their scales and zero-points, in megabytes. Computed from the "
        "bits, not from a file."
    ),
    "bops": (
        "Bit-operations: multiplications per image, each counted as weight bits × activation bits."
    ),
    "time": "Wall-clock time of the whole run on the machine that made it: load to evaluate.",
    "calibration": (
        "The few unlabelled images that a method may look at. They are never test images."
    ),
    "reconstruction": (
        "Fitting one unit at a time so that its quantized output comes close to its float output."
    ),
    "unit": "What is fitted together: one layer, or one residual or transformer block.",
    "edge layers": (
        "The first and the last layer are the most sensitive. Papers treat them differently, "
        "so this is part of every comparison."
    ),
    "placement": (
        "Where activations are rounded. inputs: at the input of each layer and matrix product. "
        "boundary: once where a tensor enters a block, before it splits into branch and skip."
    ),
    "loss": (
        "The error of the unit's output against its float output. Lower is closer to the float "
        "model; the axis is logarithmic."
    ),
    "seed": "The start of all random choices. The same settings and seed give the same result.",
    "chance": "What blind guessing would reach: one divided by the number of classes.",
    "estimate": (
        "From the size of the network and from runs already stored, where there are some; real "
        "times depend on the machine and on what else it does."
    ),
}


def word(term: str) -> str:
    """The definition of a term of `WORDS`, for a tooltip."""
    return WORDS[term]
