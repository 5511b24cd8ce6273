from janus_dola.libraries import mute_torchao

mute_torchao()
