"""Labels by a language model: prompts, the labeler, scorers, contrast pairs."""
