"""Trained models as folders that others load: adapters in PEFT format or whole weights, with a model card."""
