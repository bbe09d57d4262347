"""The resources of /v1, one module each; each exports `router`."""
