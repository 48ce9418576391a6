"""Batches of rows judged by numbers: diversity, complexity, accuracy, toxicity.

`metrics` computes them, `gate` compares them with the limits of the config, `calibration` says how
far the detectors behind them can be trusted, on the labelled sets in `probes/`.
"""
