"""KSA (arXiv 2604.24432): a language model that reads near text raw and far text through summaries."""
