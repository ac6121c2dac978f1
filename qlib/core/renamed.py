"""Old names of settings, and the new ones that an error message gives instead."""

SETTINGS = {
    "keep": "quant_prob",
    "hardening": "beta_schedule",
    "settled": "early_stop_undecided",
    "rate": "lr",
    "act_rate": "act_scale_lr",
    "step_rate": "weight_scale_lr",
    "bias_rate": "bias_lr",
    "zero_rate": "zero_point_lr",
    "exponent_rate": "exponent_lr",
}
