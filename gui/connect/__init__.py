"""The page Instrument: what is there, opened and looked after."""
