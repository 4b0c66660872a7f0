"""Everything that gets a model: names, bundled models, GGUF files, tokenizers, the toy and its circuit."""
