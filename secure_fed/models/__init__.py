"""Encoders, translators and fusion: plain torch modules that know their parameters by component."""
