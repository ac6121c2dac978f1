"""The terms of the screens, each defined in one or two plain sentences."""

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
        "accuracy on endless images would plausibly lie. The intervals of two runs may overlap "
        "although a paired test on the same images tells the runs apart."
    ),
    "paired": (
        "Both runs saw the same test images, so only those count that one of them alone gets "
        "right. If the runs were equally good, these would split like throws of a fair coin; "
        "p says how often a split so uneven would come by chance (McNemar's exact test)."
    ),
    "holm": (
        "Who tests many pairs finds some difference by chance. Holm's correction raises the p "
        "values so that the whole table has a false alarm in 5 % of cases at most."
    ),
    "nearest rounding": (
        "Every number goes to the nearest level of the grid; nothing is learned. The baseline that "
        "other methods must beat."
    ),
    "agreement": (
        "Share of test images for which the quantized and the float model give the same answer, "
        "right or wrong. It separates methods that accuracy cannot."
    ),
    "k-NN accuracy": (
        "Features have no answers. Each test image is given the class of those images whose "
        "features are most alike to its own (the 20 nearest by cosine, itself left out), and the "
        "share that comes out right tells whether the features still separate the classes."
    ),
    "cosine of features": (
        "Cosine of the angle between an image's quantized and its float features, mean over "
        "images: 1 is the same direction. The 5th percentile is that of the worst twentieth."
    ),
    "CKA": (
        "Linear centred kernel alignment, 0 to 1: whether the images lie to each other as in the "
        "float network. Rotating or scaling all features does not change it."
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
    "moved": (
        "Share of weights whose level is not the nearest one: learning sent them to another, "
        "mostly to the neighbour on the other side."
    ),
    "error against nearest": (
        "Squared error as a multiple of what nearest rounding gives on the same grid. Weight "
        "error: of a layer's weights; output error: of its output in the quantized network, each "
        "against float."
    ),
    "reference of the output error": (
        "What a layer's output error is compared with. Network: the same layer where the whole "
        "network is rounded to nearest. Layer alone: the learned network with only this layer's "
        "weights sent back to nearest (calibration images)."
    ),
    "soft rounding": (
        "While it learns, each weight rounds up by a part h between 0 (down) and 1 (up). It starts "
        "at the float weight; a penalty drives h to 0 or 1, and at the end it is rounded."
    ),
    "penalty": (
        "The term that makes soft rounding hard: added to the loss once the warm-up is over, "
        "ever stricter until each weight is up or down."
    ),
    "start of the loss": (
        "At the first step the weights are not rounded yet, so the curve may rise while they "
        "choose their sides."
    ),
    "smoothing": "Running median over nine neighbouring losses; the single losses stay faint.",
    "seed": "The start of all random choices. The same settings and seed give the same result.",
    "chance": "What blind guessing would reach: one divided by the number of classes.",
    "sensitivity": (
        "How much the network's answers change when one layer alone is quantized, or when one "
        "layer alone is left in float. It says which layers are to blame."
    ),
    "KL": (
        "Kullback-Leibler divergence: how far the quantized network's class probabilities are "
        "from the float network's, averaged over images, in nats. 0 means the same "
        "probabilities. It needs no labels."
    ),
    "local error": (
        "The error a layer makes by itself: it alone is quantized and reads its float input."
    ),
    "accumulated error": (
        "The error of a layer's output when the whole network is quantized: its own and all that "
        "came before it."
    ),
    "SQNR": (
        "Signal-to-quantization-noise ratio in decibels: 10 dB means that the error has a tenth "
        "of the signal's power, 20 dB a hundredth. Higher is better; one more bit adds at most "
        "about 6 dB."
    ),
    "reach": (
        "Half the width of the noise: uniform from −n to n, in steps of the grid, a fixed number "
        "for each input channel. 0 is no noise, and a legal choice. It starts where the search "
        "expects the least error."
    ),
    "noise draw": (
        "The method draws its noise once and keeps it. Uniform is the paper's; the authors' script "
        "draws from a normal distribution, here of the same variance, measured on calibration rows."
    ),
    "offline": "One file that opens in any browser, without a network.",
    "tensor": (
        "A block of numbers. Weight: the layer's learned numbers. Input: what flows into it, from "
        "the calibration images. Output: what flows out, in float and in the quantized network."
    ),
    "stage": (
        "Float: before rounding. Rounded: the same numbers on the levels. Codes: the integers that "
        "are stored. Error: rounded minus float."
    ),
    "attention inputs": (
        "Attention multiplies two activations with each other; both are rounded, on grids of "
        "their own."
    ),
    "tensor range": "The smallest and the largest of the float values.",
    "spread": "The standard deviation of the float values.",
    "levels": (
        "The values that rounded numbers can take: 2 to the power of the bits, evenly spaced. "
        "Levels that no value took are precision that nobody uses."
    ),
    "scale": (
        "The distance between two levels, also called the step. Rounding errs by at most half of "
        "it; with a grid per channel, the median of all."
    ),
    "zero-point": "The integer code that stands for the real value 0, which so stays exact.",
    "clipping": (
        "Values beyond the grid go to its last level, however far away they are. Clipped are "
        "those that lie more than half a step outside."
    ),
    "percentile": (
        "The value below which a share of all values lies: 99.9 % of them are below p99.9."
    ),
    "outlier ratio": (
        "The largest absolute value over the larger of |p0.1| and |p99.9|. At 10, a grid that "
        "covers all values spends nine tenths of itself on 0.2 % of them."
    ),
    "rmse step": (
        "Root mean squared error in steps. Errors spread evenly over one step give 0.289; more "
        "comes from clipping or learned rounding, less from values that sit on levels."
    ),
    "live": (
        "A second process loads the stored network with PyTorch and computes these predictions "
        "when you move the bits. It is shared by all visitors and ends when nobody has asked for "
        "ten minutes. Quantization stays simulated: the milliseconds are no speed-up."
    ),
    "one model": (
        "PTMQ learns one rounding for several bit-widths at once; only the steps differ. The "
        "stored network is switched between its widths without new data. Other methods make a "
        "network for each width."
    ),
    "predicted KL": (
        "The sum over units of what each one does alone to the answers (calibration images, others "
        "in float). Damages meet inside the network, so the sum ranks assignments; their true "
        "accuracy has to be measured."
    ),
    "estimate": (
        "From the size of the network and from runs already stored, where there are some; real "
        "times depend on the machine and on what else it does."
    ),
}


def word(term: str) -> str:
    """The definition of a term of `WORDS`, for a tooltip."""
    return WORDS[term]
