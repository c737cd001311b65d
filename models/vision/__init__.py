"""Vision encoders: what is computed for images."""
