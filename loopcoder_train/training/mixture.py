"""From a run's configuration to the quotas of its token stream. Needs no torch, so the launcher can check it too."""

from data_pipeline.manifest import Manifest
from data_pipeline.quotas import QuotaPlan, quotas_for
from loopcoder_train.config.errors import require
from loopcoder_train.config.run import RunConfig


def plan_mixture(config: RunConfig, manifest: Manifest) -> QuotaPlan:
    """Sequences of every source over the whole run.

    Raises UserError when the corpus's tokens do not fit the model's vocabulary, DataError when its sources cannot give
    the shares that are asked for.
    """
    data = config.data
    require(
        manifest.vocab_size <= config.model.vocab_size,
        "model.vocab_size",
        config.model.vocab_size,
        f"must be at least {manifest.vocab_size}, the vocabulary of data.corpus_dir={data.corpus_dir}",
        f"set model.vocab_size={manifest.vocab_size} or more",
    )
    return quotas_for(
        manifest,
        config.training.num_steps * config.training.global_batch_size,
        sequence_length=data.sequence_length,
        text_share=data.text_share,
        shares=data.shares,
        max_repeats=data.max_repeats,
        shuffle_block_tokens=data.shuffle_block_tokens,
    )
