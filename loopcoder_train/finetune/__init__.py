"""Conversations -> tokens and labels -> rows that never change again -> the batches of a tuning run. No torch.

examples   rows of jsonl, parquet and datasets become Conversations, or are counted with a reason
embedded   the default set: functions of the Python environment
chat       a conversation becomes tokens by a sandboxed Jinja template; which of them the assistant says
encoding   the same for many conversations, in processes whose memory and time are bounded
packing    conversations are packed whole into rows
plan       all of that, frozen in the run's folder and hashed
stream     rows -> batches; a function of (plan, seed, number of the batch)
"""
