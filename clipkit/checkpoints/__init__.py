"""From files and hub repositories to a config and a canonical state dict."""
