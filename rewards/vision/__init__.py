"""What picture rewards share: reading pictures, published weights, CLIP and BLIP bodies, detectors."""
