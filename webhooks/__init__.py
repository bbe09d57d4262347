"""Standard Webhooks 1.0.0: endpoints, signatures, and deliveries that survive every crash."""
