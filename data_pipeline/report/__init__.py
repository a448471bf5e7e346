"""The report of a finished corpus: ledger and manifest as numbers (funnel), as text (table), as a page (page)."""
