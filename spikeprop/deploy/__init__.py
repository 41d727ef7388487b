"""Deployment: NIR, other formats, simulation held against PyTorch, the chip budget, quantisation-aware fine-tuning."""
