"""The report of a finished corpus: ledger and manifest as numbers (flows, funnel), as text (table) and as a page (page)."""
