"""LoRA: training adapters, storing them, merging them into the base."""
