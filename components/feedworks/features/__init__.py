"""The feature store from both ends: definitions, training sets, materialising, reading."""
