"""Every interval, p-value and decision of the project. Pure functions on numpy; no mlx, no scipy, no I/O.

| module | what it gives |
|---|---|
| `ratio` | the effect over a dataset: a ratio of means over clusters, jackknife standard error, t interval |
| `clusters` | which pairs are independent of each other, and values joined by cluster |
| `intervals` | rates, balanced accuracy, area under the ROC curve, means, ratios of sums over documents |
| `significance` | permutation, sign-flip and binomial tests; a value among its controls |
| `multiple` | Holm, Benjamini–Hochberg, max-t over the sites searched; winners measured again |
| `sequential` | alpha wealth over the claims of a night (LORD++) |
| `decisions` | supported, refuted, ruled out or inconclusive; the behaviour gate; placebos |
| `duplicates` | whether two results hold the same numbers |
| `distributions` | normal, Student's t, beta and binomial distributions |
| `effects` | what `mlxterp.causal` calls: metrics of patched runs to effects with intervals |
"""
