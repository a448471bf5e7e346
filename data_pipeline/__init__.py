"""Documents -> tokens -> an exactly balanced, resumable token stream. One file per stage, in order:

    sources     files, rows and docstrings become Documents (text + language + text|code)
    languages   which language a file name means
    dedup       a document whose normalised content was seen before is dropped, with a reason
    split       which documents are held out, by hash of the same normalised content
    tokenizer   byte-level BPE with reserved sentinels
    shards      token ids on disk: header, ids, one checksum per block
    remote      shards behind a URL: patient requests (remote), copies on a disk (chunk_cache), both (remote_shards)
    manifest    what a finished corpus is made of; Corpus opens it without reading the tokens
    ledger      documents, bytes and tokens per language and stage, with reasons
    mixture     which sequence of which source comes at a position, in closed form
    permutation which block of a source comes next, in closed form
    epochs      the stream of one source: epoch after epoch over its prepared variants
    quotas      how many sequences each source gives: shares and caps on repeats
    stream      positions -> batches; a pure function of (corpus, mixture, seed, position)
    segments    a run is a list of streams, each going on where those before it stopped
    loader      the part of each step that one data-parallel rank needs, prefetched
    substitutes the ledger of damaged blocks that a run replaced
    build, show the two commands: make a corpus, look at one

This package imports nothing from loopcoder_train and no torch.
"""
