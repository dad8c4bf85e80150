"""What makes training private: plans, secure noise, per-record gradients, DP-SGD and noisy statistics."""
