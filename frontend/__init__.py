"""Frontends: trained models of other frameworks to float graphs."""
