"""What the library costs, as ratios within one run."""
