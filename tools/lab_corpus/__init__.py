"""The corpus of lab-tiny: what it knows (glossary/*.toml), how people ask (phrasings.py), and
the stream of training and held-out samples made from both (samples.py)."""
