"""From sources to a corpus: the preparation graph behind `loopcoder data build`."""
