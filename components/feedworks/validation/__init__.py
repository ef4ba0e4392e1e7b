"""The gate in front of every training run: a data folder that breaks its contract goes no further."""
