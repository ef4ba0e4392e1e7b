"""RecoChain (arXiv 2604.25787): generate semantic IDs under a trie, rerank them with the full history."""
