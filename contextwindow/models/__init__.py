"""Adapters to provider APIs; each imports its SDK only when a model is made."""
