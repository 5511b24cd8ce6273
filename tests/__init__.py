from janus_dola.cli.startup import mute_torchao

mute_torchao()
