"""OCARM (arXiv 2604.25839): a teacher sees what users met after they came back; the student never can."""
