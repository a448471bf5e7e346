"""The lenses of the paper on what loops do (plt.md section 4), one per file: tensors of some tokens in, numbers out.

Loops are numbered r = 1..R and h(0) = E, the embeddings. A lens knows no model, batch or document: whoever calls it
gives it the tokens of one document. Telemetry (engines) uses the cheap ones while training, `diagnostics` all of them.
docs/diagnostics.md has every definition, and what the paper leaves open.
"""
