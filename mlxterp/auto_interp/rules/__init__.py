"""Labels as executable rules over tokens, and fitting them without a language model."""
