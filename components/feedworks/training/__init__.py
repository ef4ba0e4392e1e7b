"""Training on Lightning Fabric: one loop, exact resume, safetensors checkpoints."""
