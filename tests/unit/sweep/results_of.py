"""Results out of thin air, for what is made of them."""

from loopcoder_train.sweep.results import ArmResult, Point, Tuned, loss_of_documents


def result(
    label: str, losses: list[float], *, seed: int = 0, tokens: int = 10, bigram: float = 5.0, **more
) -> ArmResult:
    """`losses`: of each document, in nats per token; all documents have `tokens` tokens."""
    documents = {
        "sources": [0] * len(losses),
        "tokens": [tokens] * len(losses),
        "losses": [[loss * tokens for loss in losses]],
    }
    mean = sum(losses) / len(losses)
    loops = int(label[-1]) if label[-1].isdigit() else 1
    values = {
        "name": f"{label},seed={seed}", "label": label, "value": loops, "seed": seed, "reference": None,
        "num_loops": loops, "num_layers": 4, "parameters": 1000, "tokens": 4096, "training_flops": 10**12 * loops,
        "training_seconds": 10.0 * loops, "kv_cache_bytes": 2048, "loss": loss_of_documents(documents),
        "loop_losses": [mean + 1] * (loops - 1) + [mean], "bits_per_byte": 2.0,
        "by_language": {"python": {"loop_losses": [mean], "supervised_tokens": 100}}, "by_kind": {},
        "inference": {loops: mean}, "unigram_entropy": 6.0, "bigram_loss": bigram,
        "curve": [Point(tokens=1024, flops=1e9, loss=mean + 1), Point(tokens=4096, flops=4e9, loss=mean)],
        "tuned": Tuned(loss=mean - 1, tokens=50, corpus_loss=mean), "diagnosis": None, "documents": documents,
    }  # fmt: skip
    return ArmResult(**(values | more))
