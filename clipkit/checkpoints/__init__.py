"""Turn names, files and hub repositories into configs and canonical weights, and back."""
