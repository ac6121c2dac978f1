"""The Run page: form, presets, submission."""
