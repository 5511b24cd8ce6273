"""The commands of the command line, one a module; `janus_dola.cli` registers them."""
