"""Reports of a run: one self-contained HTML file, its figures, and the model card."""
