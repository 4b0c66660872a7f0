"""The computational graph: edges, patching and removing them, ACDC, faithfulness."""
