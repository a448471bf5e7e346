"""Documents -> tokens -> an exactly balanced, resumable token stream.

    prepare/    the graph behind `loopcoder data build`: sources to shards (graph.py has its phases)
    languages   what the table knows about a language; language_manifest: which languages a corpus has, and their shares
    tokenizer   byte-level BPE with reserved sentinels; encoders: who encodes; tokenizer_file: what may be imported
    shards      token ids on disk: header, ids, one checksum per block
    remote      shards behind a URL: patient requests (remote), copies on a disk (chunk_cache), both (remote_shards)
    manifest    what a finished corpus is made of; Corpus opens it without reading the tokens
    ledger      documents, bytes and tokens per language and stage, with reasons
    quotas      how many sequences each source gives: shares and caps on repeats
    mixture     which sequence of which source comes at a position, in closed form
    permutation which block of a source comes next, in closed form
    epochs      the stream of one source: epoch after epoch over its prepared variants
    stream      positions -> batches; a pure function of (corpus, mixture, seed, position)
    segments    a run is a list of streams, each going on where those before it stopped
    loader      the part of each step that one data-parallel rank needs, prefetched
    substitutes the ledger of damaged blocks that a run replaced
    report/     where every document went, as tables and a page; show: what a corpus holds

This package imports nothing from loopcoder_train and no torch.
"""
